"""What a gate must not let through: plans that contradict themselves, boards that only look idle, sick ones."""

import copy
import json
from pathlib import Path

import jsonschema
import pytest

import devctl as package
from devctl.devices import Device
from devctl.errors import RefusedError, UsageError
from devctl.inventory.document import from_document, to_document
from devctl.inventory.idle import busiest, who_is_on
from devctl.inventory.probes import disk
from devctl.inventory.probes.nvidia_health import Answer, parse_health
from devctl.inventory.records import HOST_POOL, Accelerator, Health, Hidden, Host, Inventory, MigInstance, Process
from devctl.inventory.requirements import Requirements, disk_use, judge
from devctl.placement.document_shape import require_shape
from devctl.planning import checking
from devctl.planning.map_file import parse_map_file
from devctl.planning.plan_facts import contradictions, parse_facts
from tests.conftest import CONFIGS
from tests.inventory import boxes
from tests.inventory.boxes import GIB
from tests.marks import one_in, slow

MIB = 2**20
TINY = CONFIGS / "tiny-llama"
HOST = Host(cpu="x", cores_physical=1, cores_logical=1, ram_total=64 * GIB, ram_available=64 * GIB)


def gpu(n, free=50 * GIB, **facts):
    known = {"device": Device.gpu(n), "index": n, "cuda_index": n, "name": "G", "uuid": f"GPU-{n}", "memory_used": 0}
    known |= {"memory_total": 80 * GIB, "processes": (), "utilization": 0, "health": Health()}
    return Accelerator(**{**known, "memory_free": free, **facts})


def box(*gpus, **facts):
    return Inventory(**{"accelerators": gpus, "host": HOST, "disks": (), **facts})


def reasons(inventory, **wanted):
    return judge(inventory, Requirements(**wanted)).reasons


# Plans


def planned(machine, **asked):
    return package.plan(str(TINY), machine, **asked).to_document()


@pytest.fixture(scope="module")
def weights():
    return planned("8MiB,8MiB,cpu=1GiB", strategy="optimal")


@pytest.fixture(scope="module")
def workload():
    return planned("2x24MiB,cpu=1GiB", strategy="balanced", context_length=64, batch_size=2, overhead=0)


@pytest.fixture(scope="module")
def workload_on_cpu():
    return planned("cpu=1GiB", context_length=64)


@pytest.fixture
def found(tmp_path):
    """Holds a document against a machine: ``found(document, inventory=box(gpu(0))).reasons``."""

    def check(document, inventory=None, **how):
        path = tmp_path / "plan.json"
        path.write_text(json.dumps(document))
        return package.check(device_map=path, inventory=inventory or box(gpu(0), gpu(1)), **how)

    return check


def test_all_that_a_plan_says_is_held_against_the_machine(found, workload):
    first = workload["devices"][0]
    total = sum(first[part] for part in ("used", "state", "activations", "unallocated", "overhead"))
    assert total > first["used"] + first["unallocated"] > first["used"] > 0
    assert found(workload, inventory=box(gpu(0, total), gpu(1))).ok
    verdict = found(workload, inventory=box(gpu(0, total - 1), gpu(1)))
    assert [(f.wanted, f.found) for f in verdict.findings if not f.met] == [(total, total - 1)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.update(devices=[]), 'which "devices" does not have'),
        (lambda d: d["devices"].pop(1), 'on cuda:1, which "devices" does not have'),
        (lambda d: d["devices"].append(d["devices"][0]), 'cuda:0 is 2 times in "devices"'),
        (lambda d: d["devices"][0].update(used=0), "cuda:0 is said to hold nothing"),
        (lambda d: d["devices"][0].update(used=1), "its model is of"),
        (lambda d: d["devices"][0].update(modules=[]), 'the "modules" of cuda:0 are not those of the map'),
        (lambda d: d["devices"][0].update(modules=["lm_head", "x"]), "are not those of the map"),
        (lambda d: d["devices"][0].update(budget=1), "and may hold 1 B"),
        (lambda d: d["model"].update(bytes=1), "its model is of 1 B"),
        (lambda d: d.update(offloaded=5), "5 B are said to be offloaded"),
        (lambda d: d["devices"][0].update(device="cuda:7"), "the map puts nothing there"),
        (lambda d: d["device_map"].update({"lm_head": 1, "model.norm": 0}), "are not those of the map"),
        (
            lambda d: d["devices"][0].update(loading=d["devices"][0]["used"] - 1),
            "MiB then (",
        ),
        (lambda d: d["devices"][0].update(loading=0), "is said to take 0 B to load"),
        (lambda d: d["devices"][0].update(state=9), "is said to need 9 B beside weights, and no workload is told"),
    ],
)
def test_a_plan_that_contradicts_its_map_is_refused(found, weights, change, words):
    document = copy.deepcopy(weights)
    assert found(document).ok
    change(document)
    verdict = found(document)
    assert not verdict.ok
    assert any(words in reason for reason in verdict.reasons), verdict.reasons


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d["devices"][0].update(state=0), "cuda:0 is said to keep 0 B of state"),
        (lambda d: d["devices"][0].update(activations=0), "cuda:0 is said to need no activations"),
        (lambda d: d["devices"][1].update(state=d["devices"][1]["state"] + 1), "and its blocks"),
        (lambda d: d["workload"].update(output=2**40), "and the output is of"),
        (lambda d: [block.update(state=0) for block in d["workload"]["blocks"]], "and its blocks 0 B"),
        (lambda d: d["devices"][0].update(activations=1), "cuda:0 is said to need 1 B of activations"),
        (lambda d: d["workload"]["blocks"][1].update(prefill=2**40), "and its blocks need up to 1.00 TiB"),
        (lambda d: d["workload"]["blocks"][0].update(name="x", decode=2**40), "of activations, as x does"),
        (lambda d: d["workload"].update(new_tokens=65), "65 of 64 tokens are said to be new"),
    ],
)
def test_a_workload_that_contradicts_its_devices_is_refused(found, workload, change, words):
    document = copy.deepcopy(workload)
    assert found(document).ok
    change(document)
    reasons = found(document).reasons
    assert any(words in reason for reason in reasons), reasons


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d["devices"][0].update(activations=1), "activations, and by the model it is"),
        (lambda d: d["workload"].update(context_length=512), "of state, and by the model it is"),
        (lambda d: d["workload"].update(context_length=10**9), "tokens are more than devctl counts"),
        (lambda d: d["workload"].update(kernels="gpu"), "its workload is none"),
        (lambda d: d["workload"].update(kv_dtype="int3"), "its workload is none"),
        (lambda d: d["model"].update({"class": "BertModel"}), "a plan of a model of class BertModel"),
        (lambda d: d["model"].update(quantisation="nf4"), "of a model of quantisation nf4"),
        (lambda d: d["model"].update(dtype="float8"), "of a model of dtype float8"),
        (lambda d: d["device_map"].update({"head": 0}), "'head' is no module"),
    ],
)
def test_a_plan_that_contradicts_its_model_is_refused(found, workload, change, words):
    document = copy.deepcopy(workload)
    assert found(document, model=str(TINY)).ok
    change(document)
    reasons = found(document, model=str(TINY)).reasons
    assert any(words in reason for reason in reasons), reasons


def test_a_plan_in_another_dtype_is_held_against_the_model_in_that(found):
    document = planned("64MiB,cpu=1GiB", dtype="float32")
    assert found(document, model=str(TINY)).ok
    document["model"]["dtype"] = "bfloat16"
    assert not found(document, model=str(TINY)).ok


@pytest.mark.parametrize(
    "change",
    [
        {"devices": None},
        {"devices": [1]},
        {"devices": [{"device": "cuda:0", "used": True}]},
        {"devices": [{"device": "cuda:0", "used": 10**400}]},
        {"devices": [{"device": "cuda:0", "used": 2**63}]},
        {"devices": [{"device": "cuda:0", "used": 1, "state": -1}]},
        {"devices": [{"device": "cuda:0", "used": 1, "budget": "1GiB"}]},
        {"devices": [{"device": "cuda:0", "used": 1, "modules": [1]}]},
        {"offloaded": "1"},
        {"model": 1},
        {"workload": 1},
        {"workload": {"blocks": {}}},
        {"workload": {"context_length": "64"}},
        {"workload": {"blocks": [{}]}},
        {"workload": {}, "devices": [{"device": "cuda:0", "used": 1}]},
    ],
)
def test_a_malformed_plan_is_wrong_usage(weights, devctl, tmp_path, change):
    (tmp_path / "plan.json").write_text(json.dumps({**weights, **change}))
    done = devctl("check", "--map", tmp_path / "plan.json")
    assert (done.code, done.out) == (2, "")
    assert done.err.count("\n") == 1


def _paths(value, at=()):
    """Where each value of a document is; of a list, the first entry."""
    if at:
        yield at
    for key in value if isinstance(value, dict) else range(min(1, len(value))) if isinstance(value, list) else ():
        yield from _paths(value[key], (*at, key))


def _changed(document, at, value):
    found = copy.deepcopy(document)
    parent = found
    for key in at[:-1]:
        parent = parent[key]
    if value is ABSENT:
        del parent[at[-1]]
    else:
        parent[at[-1]] = value
    return found


ABSENT = object()
TOO_LARGE = (float("inf"), 10**400)
OTHER_KINDS: tuple[object, ...] = (ABSENT, None, True, -1, 1.5, "x", [], {}, *TOO_LARGE)


def test_every_value_of_another_kind_than_the_schema_has_is_refused(workload):
    document = json.loads(json.dumps({**workload, "notes": ["n"]}))
    schema = json.loads(Path(checking.__file__).parents[1].joinpath("placement/schema.json").read_text())
    for words in (schema["properties"]["strategy"], schema["$defs"]["Workload"]["properties"]["kernels"]):
        words["type"] = ["string", "null"] if None in words.pop("enum") else "string"  # which word is asked elsewhere
    valid = jsonschema.Draft202012Validator(schema).is_valid
    require_shape(document, "x")
    let_through = []
    for at in _paths(document):
        for value in OTHER_KINDS:
            changed = _changed(document, at, value)
            wrong = value in TOO_LARGE or not valid(changed)
            try:
                parse_map_file(json.dumps(changed), "x")
                let_through += [(at, value)] if wrong else []
            except (UsageError, RefusedError) as error:
                assert "\n" not in error.message
    assert let_through == []


def test_what_somebody_wrote_by_hand_need_not_say_all_and_a_torn_plan_is_refused():
    written = {"schema": 1, "kind": "devctl.plan", "model": {}, "device_map": {"": "cpu"}}
    written["devices"] = [{"device": "cpu", "used": 1, "budget": None}]
    assert parse_map_file(json.dumps(written), "x").facts.devices[0].used == 1
    with pytest.raises(UsageError, match='the plan lacks "engine", "strategy"'):
        parse_map_file(json.dumps({**written, "versions": {}}), "x")


@pytest.mark.slow
def test_a_plan_of_every_kind_agrees_with_itself():
    machines = {"llama-3.1-8b": "2x12GiB,cpu=64GiB", "t5-11b": "16GiB,8GiB,cpu=64GiB", "whisper-large-v3": "cpu=64GiB"}
    for name, machine in machines.items():
        for asked in ({}, {"context_length": 128, "batch_size": 2}):
            plan = package.plan(str(CONFIGS / name), machine, **asked)
            facts = parse_facts(json.loads(json.dumps(plan.to_document())), "x")
            assert list(contradictions(facts, dict(plan.placement.device_map))) == [], (name, asked)


def test_a_plan_that_leaves_an_accelerator_empty_agrees_with_itself(found):
    document = planned("2x24MiB,cpu=1GiB", strategy="sequential", context_length=64)
    assert (document["devices"][0]["used"], document["offloaded"]) == (0, document["model"]["bytes"])
    assert found(document).ok


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d["devices"][0].update(used=1), "cpu is said to hold 1 bytes of weights"),
        (lambda d: d["devices"][0].update(budget=None, activations=2**60), "cpu: needs 1048576 TiB of"),
        (lambda d: d["model"].update({"class": "BertModel"}), "a model of class BertModel, and this one is of"),
        (lambda d: d["model"].update(dtype="float32"), "a model of dtype float32, and this one is of bfloat16"),
        (lambda d: d["model"].update(quantisation="nf4"), "a model of quantisation nf4, and this one is of None"),
        (lambda d: d.update(devices=[]), 'which "devices" does not have'),
    ],
)
def test_a_plan_is_held_against_all_it_says_before_it_is_loaded(devctl, tmp_path, workload_on_cpu, change, words):
    document = copy.deepcopy(workload_on_cpu)
    change(document)
    (tmp_path / "plan.json").write_text(json.dumps(document))
    done = devctl("load", TINY, "--load-format", "dummy", "--map", tmp_path / "plan.json")
    assert (done.code, done.out) == (3, "")
    assert words in done.err


@pytest.mark.parametrize("change", [{"notes": 7}, {"crossings": -1}, {"workload": {"context_length": 10**400}}])
def test_a_plan_over_hosts_of_another_shape_is_wrong_usage(devctl, tmp_path, change):
    use = {"used": 1, "state": 0, "activations": 0, "unallocated": 0, "overhead": 0, "budget": 9}
    stage = {"stage": 0, "host": "a", "devices": ["cuda:0"], "layers": [0, 8], **use}
    document = {"schema": 1, "kind": "devctl.plan", "layers_in": "model.layers", "stages": [stage], **change}
    (tmp_path / "plan.json").write_text(json.dumps(document))
    done = devctl("load", TINY, "--map", tmp_path / "plan.json", "--launch", "print")
    assert (done.code, done.out) == (2, "")
    assert next(iter(change)) in done.err


def test_a_plain_map_says_that_room_was_not_asked(devctl, tmp_path):
    (tmp_path / "map.json").write_text('{"": "cpu"}')
    done = devctl("check", "--map", tmp_path / "map.json")
    assert done.code == 0
    assert "whether its layers have room was not asked" in done.out


def test_a_map_that_fits_selects_nothing_beside_an_unmet_requirement(found, weights):
    verdict = found(weights, box(gpu(0), gpu(1, 1)), requirements=Requirements(select=1))
    assert (verdict.ok, verdict.selected) == (False, ())


# Disks


@pytest.mark.parametrize("path", one_in(2, ["/nosuchmount/x", "/dev/null", "~nobody-at-all/x", "a\x00b"]))
def test_a_disk_that_is_not_there_is_refused(devctl, path):
    done = devctl("check", "--disk", f"{path}=1B")
    assert (done.code, done.out) == (3, "")
    assert done.err.count("\n") == 2


def test_a_folder_that_is_there_counts_and_one_to_be_made_is_still_shown(tmp_path):
    assert disk.probe("x", tmp_path, (), must_be_there=True).fault is None
    assert disk.probe("x", tmp_path / "no", ()).fault is None
    assert disk.probe("x", tmp_path / "no", (), must_be_there=True).fault == "No such file or directory"
    (tmp_path / "file").write_text("")
    assert disk.probe("x", tmp_path / "file", (), must_be_there=True).fault == "is no folder"


# How many


@pytest.mark.parametrize(
    "option",
    [["--gpu-memory", "40GiB"], ["--idle"], ["--healthy"], ["--p2p"], ["--compute-capability", "8"], ["--select", "1"]],
)
def test_nothing_can_be_asked_of_no_gpu(devctl, option):
    done = devctl("check", "--gpus", "0", *option)
    assert (done.code, done.out) == (2, "")
    assert f"--gpus 0 asks for no GPU: leave out {option[0]}" in done.err


@pytest.mark.parametrize("wanted", [{"gpus": -1}, {"select": 0}])
def test_the_library_counts_as_the_options_do(wanted):
    with pytest.raises(UsageError, match="at least"):
        Requirements(**wanted)


def test_boards_of_one_uuid_are_not_selected():
    twins = box(gpu(0, uuid="GPU-x"), gpu(1, uuid="GPU-x"), gpu(2))
    why = "; ".join(f"cuda:{n}: its UUID is another board's too" for n in range(2))
    assert reasons(twins, select=2) == (f"--select 2: 1 usable, 2 wanted; {why}",)
    assert [a.index for a in judge(twins, Requirements(select=1)).selected] == [2]
    assert reasons(twins, gpus=3) == ()


def test_a_fact_is_told_once():
    assert len(reasons(box(gpu(0), gpu(1, 1)), gpus=2, gpu_memory=GIB)) == 1
    assert reasons(box(gpu(0)), gpus=2, gpu_memory=GIB, idle=True) == ("--gpus 2: 1 usable, 2 wanted",)
    assert reasons(box(gpu(0, device=None, hidden=Hidden.ENVIRONMENT)), gpus=1, gpu_memory=GIB, p2p=True) == (
        "--gpus 1 --gpu-memory 1.00 GiB --p2p: 0 usable, 1 wanted; nvidia 0: hidden (environment)",
    )


def test_numbers_are_integers_in_the_document():
    disks = (disk.Disk(use=disk_use(Path("/d")), path="/d", total=9, free=4),)
    sizes = {"gpu_memory": 40 * GIB, "total_gpu_memory": GIB, "ram": GIB, "disks": ((Path("/d"), 5),)}
    wanted = Requirements(gpus=2, idle=True, compute_capability="8.0", **sizes)
    boards = gpu(0, compute_capability="9.0"), gpu(1, 30 * GIB, compute_capability="10.0")
    document = judge(box(*boards, disks=disks), wanted).to_document()
    assert {each["requirement"].split()[0]: (each["wanted"], each["found"]) for each in document["requirements"]} == {
        "--gpus": (2, 2),
        "--gpu-memory": (40 * GIB, 30 * GIB),
        "--compute-capability": ("8.0", "9.0"),
        "--idle": (2, 2),
        "--total-gpu-memory": (GIB, 80 * GIB),
        "--ram": (GIB, 64 * GIB),
        "--disk": (5, 4),
    }


# Idle


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"memory_used": GIB, "utilization": 37}, "1.00 GiB in use that no process explains, 37% busy"),
        ({"memory_used": 256 * MIB + 1}, "whose processes can't be seen from here"),
        ({"utilization": 6}, "6% busy, whose processes can't be seen from here"),
        ({"memory_used": None}, "memory in use unknown"),
        ({"utilization": None}, "utilisation unknown"),
        ({"processes": None}, "processes unknown"),
        ({"processes": (Process(pid=7, name=None, memory=None),)}, "process 7"),
    ],
)
def test_a_board_with_somebody_unseen_on_it_is_not_idle(facts, words):
    assert words in who_is_on(gpu(0, **facts))
    assert words in reasons(box(gpu(0, **facts)), idle=True)[0]


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"memory_used": 256 * MIB, "utilization": 5},
        {"memory_used": None, "memory_pool": HOST_POOL},
        {"utilization": None, "mig": MigInstance(parent="GPU-0", gpu_instance=1, compute_instance=0)},
    ],
)
def test_a_board_with_nobody_on_it_is_idle(facts):
    assert who_is_on(gpu(0, **facts)) == ""


def test_a_board_is_as_busy_as_it_was_at_most():
    looks = [box(gpu(0, utilization=busy, memory_used=busy)) for busy in (0, 40, 0)]
    assert busiest(looks).accelerators[0].utilization == 40
    away = [looks[0], box(gpu(0, uuid="GPU-9", utilization=90)), looks[2]]
    assert busiest(away).accelerators[0].utilization == 0, "another board"
    assert busiest([box(), looks[2]]).accelerators[0].utilization == 0


def test_a_board_is_looked_at_three_times_over_a_second(monkeypatch):
    busy = iter([0, 60, 0])
    slept = []
    monkeypatch.setattr(checking, "take_inventory", lambda **_: box(gpu(0, utilization=next(busy))))
    monkeypatch.setattr(checking.time, "sleep", slept.append)
    verdict = package.check(Requirements(idle=True))
    assert sum(slept) == 1.0
    assert verdict.reasons == (
        "--idle: 0 of 1 usable GPUs have enough, 1 wanted; cuda:0: 60% busy, whose processes can't be seen from here",
    )


def test_memory_that_the_driver_reserves_is_nobodys(machine, devctl, monkeypatch):
    monkeypatch.setattr(checking.time, "sleep", lambda _: None)
    machine(boxes.system() + boxes.board(used=0, reserved=GIB))
    assert devctl("check", "--idle").code == 0
    machine(boxes.system() + boxes.board(used=GIB, util=37))
    done = devctl("check", "--idle")
    assert done.code == 3
    assert "1.00 GiB in use that no process explains, 37% busy, whose processes can't be seen from here" in done.err


# Healthy

WELL = {
    "ecc": 0,
    "retire": 0,
    "remap": 0,
    "unmapped": 0,
    "recover": 0,
    "width": 16,
    "widest": 16,
    "gen": 1,
    "newest": 5,
}


def answers(**values):
    names = ("ecc", "retirement", "rows", "recovery", "width", "width max", "generation", "generation max", "clocks")
    return {name: values.get(name.replace(" ", "_"), Answer()) for name in names}


@pytest.mark.parametrize(
    ("values", "busy", "problems"),
    [
        ({}, 0, ()),
        ({"ecc": Answer(0), "rows": Answer((9, 9, 0, 0)), "recovery": Answer(0), "clocks": Answer(0x117)}, 0, ()),
        ({"ecc": Answer(1)}, 0, ("1 uncorrected ECC error",)),
        ({"ecc": Answer(2)}, 0, ("2 uncorrected ECC errors",)),
        ({"retirement": Answer(1)}, 0, ("memory pages to be retired at the next reset",)),
        ({"rows": Answer((0, 0, 1, 0))}, 0, ("memory rows to be remapped at the next reset",)),
        ({"rows": Answer((0, 0, 0, 1))}, 0, ("a memory row could not be remapped",)),
        ({"recovery": Answer(2)}, 0, ("the driver asks for recovery: node-reboot",)),
        ({"recovery": Answer(99)}, 0, ("the driver asks for recovery: unknown (99)",)),
        ({"width": Answer(8), "width_max": Answer(16)}, 0, ("its link has 8 of 16 lanes",)),
        ({"generation": Answer(1), "generation_max": Answer(5)}, 5, ()),
        ({"generation": Answer(1), "generation_max": Answer(5)}, None, ()),
        (
            {"generation": Answer(1), "generation_max": Answer(5)},
            6,
            ("its link is of generation 1 under load, and could be of 5",),
        ),
        ({"clocks": Answer(0x20)}, 0, ("its clocks are throttled (heat)",)),
        ({"clocks": Answer(0x48)}, 0, ("its clocks are throttled (heat)",)),
        ({"clocks": Answer(0xC8)}, 0, ("its clocks are throttled (heat, power-brake)",)),
        ({"clocks": Answer(0x8)}, 0, ("its clocks are throttled (hardware)",)),
        ({"ecc": Answer(error="Unknown Error")}, 0, ("uncorrected ECC errors can't be told: Unknown Error",)),
    ],
)
def test_what_is_wrong_with_a_board(values, busy, problems):
    assert parse_health(answers(**values), busy).problems == problems


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"ecc": 3}, "3 uncorrected ECC errors"),
        *slow(
            ({"width": 8, "widest": 16}, "8 of 16 lanes"),
            ({"sick": 999}, "can't be told"),
            ({"retire": 1}, "to be retired"),
            ({"remap": 1}, "to be remapped"),
            ({"unmapped": 1}, "could not be remapped"),
            ({"recover": 4}, "drain-and-reset"),
            ({"gen": 1, "newest": 5, "util": 90}, "generation 1 under load"),
            ({"slowed": 128}, "throttled (power-brake)"),
        ),
    ],
)
def test_a_sick_board_is_never_selected_and_told(machine, devctl, facts, words):
    machine(boxes.system() + boxes.board(0, **{"used": 0, **facts}) + boxes.board(1, used=9 * GIB, **WELL))
    assert devctl("check", "--healthy", "--select", "1").out == "1\n"
    assert devctl("check", "--select", "1").out == "1\n", "though it has less memory free"
    done = devctl("check", "--healthy", "--gpus", "2")
    assert (done.code, done.out) == (3, "")
    assert words in done.err
    assert words in " ".join(devctl("list", "--only", "gpu").out.split())
    board = json.loads(devctl("list", "--only", "gpu", "--json").out)["accelerators"][0]
    assert any(words in problem for problem in board["health"]["problems"])
    assert (board["fault"], board["device"]) == (None, "cuda:0"), "it works"


def test_what_a_board_does_not_have_is_no_fault(machine, devctl):
    machine(boxes.system() + boxes.board())
    assert devctl("check", "--healthy").code == 0
    assert "unhealthy" not in devctl("list").out


def test_an_instance_is_as_healthy_as_its_board(machine, devctl):
    machine(boxes.system() + boxes.board(0, mig=1, ecc=1) + boxes.mig(0, 0))
    done = devctl("check", "--healthy")
    assert done.code == 3
    assert "1 uncorrected ECC error" in done.err


def test_boards_that_do_not_tell_are_not_healthy():
    assert "amd boards do not tell their health" in reasons(box(gpu(0, vendor="amd", health=None)), healthy=True)[0]


def test_the_documents_hold_to_their_schemas(machine, devctl):
    schema = json.loads((Path(package.__file__).parent / "inventory/check.schema.json").read_text(encoding="utf-8"))
    machine(boxes.system() + boxes.board(0, **WELL) + boxes.board(1, sick=999))
    for arguments in (["--gpus", "3"], ["--select", "1", "--healthy"], ["--total-gpu-memory", "1GiB", "--cuda", "99"]):
        jsonschema.validate(json.loads(devctl("check", *arguments, "--json").out), schema)


def test_records_without_health_are_read():
    document = to_document(box(gpu(0)))
    assert from_document(copy.deepcopy(document)).accelerators[0].health == Health()
    del document["accelerators"][0]["health"]
    assert from_document(json.loads(json.dumps(document))) == box(gpu(0, health=None))
