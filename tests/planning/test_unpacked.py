"""Packed weights on machines that have no hardware for them: every verdict counts them as transformers holds them."""

import dataclasses
import json

import pytest

import devctl
from devctl.devices import Device
from devctl.inventory.hypothetical import parse_devices
from devctl.models import skeleton
from devctl.models.files.kinds import PipelineFoundError
from devctl.planning.checking import needs_of
from devctl.planning.machine import open_machine
from devctl.planning.map_file import read_map_file
from devctl.planning.model import open_model
from devctl.planning.pipelines import plan_pipeline
from devctl.planning.request import MachineRequest, ModelRequest
from devctl.planning.unpacked import is_unpacked
from tests import quantised, small_models
from tests.marks import one_in, slow
from tests.pipelines import write_index

CPU = Device.cpu()
_BUILT = small_models.build(small_models.WIDE["llama"])
UNPACKED = 2 * sum(p.numel() for p in _BUILT.parameters()) + sum(b.numel() * 4 for b in _BUILT.buffers())
"""Bytes of the small llama in bfloat16; in fp8 it is 0.7 MiB."""


@pytest.fixture(scope="module")
def fp8(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fp8")
    quantised.packed(folder, "llama", quantised.CHECKPOINTS["fp8"], "bfloat16")
    return str(folder)


def fits_by_every_way(model, machine):
    """What each way to ask says of the shortest text on a machine without a disk."""
    ask = {"context_length": 16, "overhead": 0}
    table = devctl.compare(model, machine, **ask)
    capacity = devctl.capacity(model, machine, **ask)
    least = devctl.plan(model, machine, target_context=16, overhead=0)
    return {
        "plan": devctl.plan(model, machine, **ask).fits,
        "optimal": devctl.plan(model, machine, strategy="optimal", **ask).fits,
        "a map": devctl.plan(model, machine, device_map={"": "cpu"}, **ask).fits,
        "compare": table.fits(table.chosen),
        "capacity": capacity.max_batch > 0 and capacity.max_context >= 16,
        "what-if": capacity.what_if[0].context_length >= 16 and capacity.what_if[0].fits,
        "target-context": least.fits,
    }


@pytest.mark.parametrize(("mib", "fits"), [("1.3MiB", False), *slow(("1MiB", False), ("8MiB", True))])
def test_every_way_to_ask_says_the_same_of_a_machine_without_an_accelerator(fp8, mib, fits):
    assert set(fits_by_every_way(fp8, f"cpu={mib}").values()) == {fits}


@pytest.mark.parametrize(("machine", "mib", "fits"), [("cpu", 1, False), ("cpu", 2, True), ("1xH100", 1, True)])
def test_a_plan_without_an_accelerator_has_room_for_what_is_unpacked(machine, mib, fits, fp8):
    hardware = f"{machine}={mib}MiB" if machine == "cpu" else f"{machine},cpu={mib}MiB"
    plan = devctl.plan(fp8, hardware)
    assert plan.fits is fits
    assert plan.model.nbytes == UNPACKED if machine == "cpu" else plan.model.nbytes < UNPACKED / 1.5
    if not fits:
        assert plan.refusal.findings[-1] == (
            "fp8 weights count as unpacked to bfloat16: this machine has no hardware for them, and transformers "
            "unpacks them"
        )
        assert plan.refusal.message.endswith("would be left on disk")
    kept = devctl.plan(fp8, hardware)  # the second time, of a tree that was kept
    assert kept.refusal == plan.refusal
    assert kept.tree == plan.tree


def test_what_is_left_on_a_disk_is_counted_as_unpacked_too(fp8):
    placement = devctl.plan(fp8, "cpu=1MiB,disk=1GiB").placement
    assert sum(use.used for use in placement.devices) == UNPACKED
    assert placement.on_disk > 0


@pytest.mark.parametrize(
    ("method", "devices", "unpacks"),
    [
        ("fp8", "cpu=8GiB", True),
        ("fp8", "1xA100 80GB,cpu=8GiB", True),
        ("fp8", "1xL40S,cpu=8GiB", False),
        ("fp8", "1xH100,cpu=8GiB", False),
        ("fp8", "24GiB,cpu=8GiB", False),  # a board of which nothing is known
        ("fp8", "M3 Max 64GB", True),
        ("mxfp4", "1xV100 32GB,cpu=8GiB", True),
        ("mxfp4", "1xT4,cpu=8GiB", False),
        ("mxfp4", "M3 Max 64GB", True),
        ("metal", "M3 Max 64GB", False),
        ("metal", "1xH100,cpu=8GiB", True),
    ],
)
def test_hardware_decides_what_is_unpacked_as_in_transformers_quantizers(method, devices, unpacks, fp8):
    tree = dataclasses.replace(devctl.open_model(fp8).tree, quantisation=method)
    assert is_unpacked(tree, parse_devices(devices)) is unpacks


def test_boards_that_unpack_have_to_hold_more(fp8):
    ask = {"context_length": 16, "overhead": "79.1GiB"}
    (new,) = devctl.fits_on(fp8, "H100", context_length=16).boards
    (old,) = devctl.fits_on(fp8, "A100 80GB", context_length=16).boards
    assert new.count == old.count == 1
    assert old.fullest * old.memory - 512 * 2**20 > new.fullest * new.memory - 720 * 2**20 + UNPACKED // 4
    assert devctl.fits_on(fp8, "H100", **ask).boards[0].count is None


def test_a_check_counts_what_is_unpacked_on_the_machine(fp8, tmp_path):
    path = tmp_path / "map.json"
    path.write_text(json.dumps({"": "cpu"}))
    request = ModelRequest(model=fp8)
    on = {name: needs_of(read_map_file(path), request, parse_devices(name)) for name in ("cpu=8GiB", "1xH100,cpu=8GiB")}
    assert on["cpu=8GiB"].bytes[CPU] >= UNPACKED > 1.5 * on["1xH100,cpu=8GiB"].bytes[CPU]


def test_a_plan_for_a_machine_that_unpacks_is_no_other_to_a_check(fp8, tmp_path):
    path = tmp_path / "plan.json"
    plan = devctl.plan(fp8, "cpu=8GiB")
    path.write_text(json.dumps(plan.to_document()))
    assert needs_of(read_map_file(path), ModelRequest(model=fp8), parse_devices("cpu=8GiB")).problems == ()


def test_the_tables_say_that_weights_are_unpacked(fp8):
    told = "fp8 weights count as unpacked to bfloat16: this machine has no hardware for them"
    told += ", and transformers unpacks them"
    assert told in devctl.compare(fp8, "cpu=8GiB").notes
    assert told in devctl.capacity(fp8, "cpu=1MiB", context_length=16).notes
    assert told not in devctl.compare(fp8, "1xH100,cpu=8GiB").notes


@pytest.mark.parametrize(
    ("hosts", "unpacked"), [("a:H100;b:H100", False), ("a:H100;b:A100 80GB", True), ("a:A100 80GB;b:A100 80GB", True)]
)
def test_over_hosts_they_count_as_unpacked_where_any_of_them_unpacks(fp8, hosts, unpacked):
    plan = devctl.plan(fp8, hosts)
    assert (sum(stage.used for stage in plan.stages.stages) >= UNPACKED) is unpacked
    assert any("fp8 weights count as unpacked" in note for note in plan.notes) is unpacked


@pytest.mark.parametrize(
    ("hosts", "unpacked"), [("a:H100,A100 80GB;b:H100", True), ("a:A100 80GB,H100;b:H100", True), ("a:2xH100", False)]
)
def test_of_a_host_whose_boards_differ_each_is_asked(fp8, hosts, unpacked):
    """A stage is a process of its own, which asks about its own board."""
    machines = dict(host.split(":") for host in hosts.split(";"))
    plan = devctl.plan(fp8, machines)
    assert plan.stages is not None
    assert (sum(stage.used for stage in plan.stages.stages) >= UNPACKED) is unpacked


@pytest.fixture
def shared_fp8(fp8, monkeypatch):
    """The FP8 llama, of which it is known how ranks cut it: as the plain one."""
    monkeypatch.setattr(skeleton, "_is_quantised", lambda *_: False)
    return devctl.open_model(fp8, cache=False)


@pytest.mark.parametrize(
    ("boards", "unpacked"),
    one_in(
        3,
        [
            ("2xH100", False),
            ("2xA100 80GB", True),
            ("A100 80GB,H100", True),
            ("H100,A100 80GB", True),  # the second rank asks about its own board
            ("2xH100,A100 80GB", False),  # which has no rank
        ],
    ),
)
def test_ranks_that_share_a_model_count_it_as_one_process_does(shared_fp8, boards, unpacked):
    plan = devctl.plan(shared_fp8, boards, tp=2, context_length=16)
    shared = plan.tensor_parallel
    assert shared is not None
    assert (sum(shared.bytes_per_rank) >= UNPACKED) is unpacked
    assert sum(style.nbytes for style in shared.sharded) == plan.model.nbytes
    told = [note for note in plan.notes if note.startswith("fp8 weights count as unpacked to bfloat16")]
    assert len(told) == int(unpacked)


@pytest.mark.parametrize(("board", "fits"), [("H100", True), ("A100 80GB", False)])
def test_ranks_have_no_room_for_packed_weights_alone_where_they_are_unpacked(shared_fp8, board, fits):
    packed = max(devctl.plan(shared_fp8, "2xH100", tp=2).placement.devices, key=lambda use: use.most).most
    plan = devctl.plan(shared_fp8, f"2x{board}", tp=2, max_memory={0: packed, 1: packed})
    assert plan.fits is fits
    if not fits:
        assert plan.refusal is not None
        assert any("fp8 weights count as unpacked" in finding for finding in plan.refusal.findings)


def test_quantised_weights_are_still_not_cut(fp8):
    for board in ("H100", "A100 80GB"):
        with pytest.raises(devctl.RefusedError, match="how quantised weights are cut is not known"):
            devctl.plan(fp8, f"2x{board}", tp=2)


@pytest.mark.parametrize(("board", "unpacked"), [("H100", False), ("A100 80GB", True)])
def test_a_component_of_a_pipeline_counts_as_it_does_alone(fp8, tmp_path, board, unpacked):
    write_index(tmp_path, {"text_encoder": ["transformers", "LlamaForCausalLM"]})
    (tmp_path / "text_encoder").symlink_to(fp8)
    request, machine = ModelRequest(model=str(tmp_path)), open_machine(MachineRequest(devices=board))
    with pytest.raises(PipelineFoundError) as found:
        open_model(request)
    plan = plan_pipeline(request, found.value, machine)
    assert plan.nbytes == devctl.plan(fp8, board).model.nbytes
    assert (plan.nbytes == UNPACKED) is unpacked
    assert plan.components[0].dtypes == ("bfloat16" if unpacked else "fp8",)
    assert any(note.startswith("text_encoder: fp8 weights count as unpacked") for note in plan.notes) is unpacked
