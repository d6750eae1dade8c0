import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devctl.devices import Device
from devctl.errors import UsageError
from devctl.models.tree import tensors, walk
from devctl.placement import Budgets, Strategy, place
from devctl.placement.document import PlannedModel, parse_map
from devctl.placement.judge import disjoint, find_faults, holder, validate
from devctl.placement.placement import DeviceUse, bytes_per_device, make_placement, tight, to_hf
from devctl.placement.plan import Plan
from devctl.placement.strategy import device_of
from tests.placement.test_loading_peak import loading
from tests.trees import layers, random_trees, tree

CPU, DISK, GPU0, GPU1 = Device.cpu(), Device.disk(), Device.gpu(0), Device.gpu(1)
MODEL = layers(10, 10, embed=4, head=4)
HERE = [GPU0, CPU, DISK]


def test_to_hf():
    pairs = [("a", GPU1), ("b", CPU), ("c", DISK), ("d", Device.mps()), ("e", Device.from_str("xpu:2"))]
    assert to_hf(pairs) == {"a": 1, "b": "cpu", "c": "disk", "d": "mps", "e": 2}


def test_the_longest_key_decides():
    device_map = {"": CPU, "layers": GPU0, "layers.1": GPU1}
    assert device_of("embed.w", device_map) == CPU
    assert device_of("layers.0.a.w", device_map) == GPU0
    assert device_of("layers.1.a.w", device_map) == GPU1
    assert device_of("layers.10.a.w", device_map) == GPU0
    assert device_of("x", {"layers": GPU0}) is None


def test_bytes_per_device():
    assert bytes_per_device(MODEL, {"embed": GPU0, "layers": GPU1, "head": CPU}) == {GPU0: 4, GPU1: 20, CPU: 4}


def test_a_good_map_has_no_findings():
    assert validate(MODEL, {"": CPU}, HERE) == ()
    assert validate(MODEL, {"embed": GPU0, "layers.0": GPU0, "layers.1": CPU, "head.w": DISK}, HERE) == ()


def test_all_findings_are_told():
    findings = validate(MODEL, {"embed": GPU1, "layers.0": CPU, "layers.7": CPU, "heads": DISK}, HERE)
    assert len(findings) == 4
    assert any("'layers.7' is no module" in f for f in findings)
    assert any("'heads' is no module" in f for f in findings)
    assert any("cuda:1 is not on this machine (it has cuda:0, cpu, disk): needed for embed" in f for f in findings)
    assert any("no device for 3 tensors: layers.1.a.w, layers.1.b.w, head.w" in f for f in findings)


@pytest.mark.parametrize(
    ("embed", "head", "bad"), [(CPU, DISK, True), (DISK, CPU, True), (CPU, GPU0, False), (DISK, DISK, False)]
)
def test_ties_that_are_split_by_the_disk(embed, head, bad):
    model = layers(10, embed=4, head=4, head_is_tied=True)
    findings = validate(model, {"embed": embed, "layers": CPU, "head": head}, HERE)
    assert bool(findings) == bad
    assert all("head.w and embed.w are one tensor" in finding for finding in findings)


@pytest.mark.parametrize(
    ("one", "other", "held"),
    [
        (GPU0, CPU, GPU0),
        (Device.mps(), CPU, Device.mps()),
        (GPU0, DISK, None),
        (GPU0, GPU1, None),
        (CPU, DISK, None),
        (CPU, CPU, None),
    ],
)
def test_who_holds_a_tied_weight_that_is_on_two_devices(one, other, held):
    assert holder(one, other) == held
    assert holder(other, one) == held


@pytest.mark.parametrize(("embed", "head"), [(GPU0, DISK), (DISK, GPU0), (GPU0, GPU1)])
def test_no_note_says_where_ties_are_that_can_not_be_loaded(embed, head):
    model = layers(10, embed=4, head=4, head_is_tied=True)
    budgets = Budgets(devices=((GPU0, 100), (GPU1, 100), (CPU, 100), (DISK, None)), given=True)
    found = make_placement(model, {"embed": embed, "layers": GPU0, "head": head}, budgets, strategy=None)
    assert not [note for note in found.notes if "loaded, it is on" in note]


def test_parameters_that_need_no_place_are_not_missed():
    model = tree({"layers": {"0": {"huge": 9, "w": 1}}}, unplaced=["huge"])
    assert validate(model, {"layers.0.w": CPU}, HERE) == ()
    assert len(validate(model, {"layers.0.huge": CPU}, HERE)) == 1


def test_nested_keys_become_disjoint():
    model = layers(*[10] * 12, embed=4, head=4)
    apart = disjoint(model, {"": CPU, "layers": GPU0, "layers.1": GPU1})
    assert apart == {"embed": CPU, "head": CPU, "layers.1": GPU1} | {f"layers.{i}": GPU0 for i in (0, *range(2, 12))}


def test_a_disjoint_map_is_left_alone():
    device_map = {"embed": GPU0, "layers.1": GPU1, "layers.0": CPU, "head": CPU}
    assert disjoint(MODEL, device_map) == device_map


@given(random_trees(), st.data())
def test_disjoint_maps_say_the_same(model, data):
    names = sorted({m.name for m in walk(model.root)} | {t.name for t in tensors(model.root)})
    device_map = data.draw(st.dictionaries(st.sampled_from(names), st.sampled_from([GPU0, GPU1, CPU, DISK])))
    apart = disjoint(model, device_map)
    for each in tensors(model.root):
        assert device_of(each.name, apart) == device_of(each.name, device_map)
    assert not any(a != b and b.startswith(f"{a}." if a else "") for a in apart for b in apart)


def test_split_ties_are_noted():
    model = layers(10, embed=4, head=4, head_is_tied=True)
    budgets = Budgets(devices=((GPU0, 100), (CPU, 100)), given=True)
    whole = make_placement(model, {"": GPU0}, budgets, strategy=None)
    split = make_placement(model, {"embed": GPU0, "layers": GPU0, "head": CPU}, budgets, strategy=None)
    assert whole.notes == ()
    assert split.notes == ("head.w on cpu and embed.w on cuda:0 are one tensor: loaded, it is on cuda:0",)


def test_more_than_a_device_may_hold_is_noted():
    budgets = Budgets(devices=((GPU0, 20), (CPU, 100)), given=False)
    notes = make_placement(MODEL, {"": GPU0}, budgets, strategy=None).notes
    assert notes == ("cuda:0 is given 28 B, 8 B more than the 20 B that it may hold",)


def test_going_straight_to_disk_is_noted():
    def notes(*devices):
        return place(MODEL, Budgets(devices=devices, given=True), Strategy.AUTO).notes

    assert "straight to disk" in notes((GPU0, 12))[0]
    assert not any("straight to disk" in note for note in notes((GPU0, 12), (CPU, 0)))
    assert notes((GPU0, 100)) == ()


# documents


def document():
    budgets = Budgets(devices=((GPU0, 26), (CPU, 100)), given=True)
    model = PlannedModel(name="org/m", revision="abc", class_name="Model", dtype="int8", nbytes=28)
    placement = place(MODEL, budgets, Strategy.SEQUENTIAL)
    return Plan(model=model, tree=MODEL, budgets=budgets, placement=placement, versions={"devctl": "0"}).to_document()


RUNTIME = {"state": 0, "activations": 0, "unallocated": 0, "overhead": 0}  # what no workload was planned for


def test_the_plan_document():
    assert document() == {
        "schema": 1,
        "kind": "devctl.plan",
        "engine": "transformers' forward",
        "versions": {"devctl": "0"},
        "model": {
            "name": "org/m",
            "revision": "abc",
            "class": "Model",
            "dtype": "int8",
            "quantisation": None,
            "bytes": 28,
            "adapters": [],
        },
        "strategy": "sequential",
        "devices": [
            {"device": "cuda:0", **RUNTIME, "used": 14, "loading": 14, "budget": 26, "modules": ["embed", "layers.0"]},
            {"device": "cpu", **RUNTIME, "used": 14, "loading": 14, "budget": 100, "modules": ["layers.1", "head"]},
            {"device": "disk", **RUNTIME, "used": 0, "loading": 0, "budget": None, "modules": []},
        ],
        "workload": None,
        "offloaded": 14,
        "crossings": 1,
        "device_map": {"embed": 0, "layers.0": 0, "layers.1": "cpu", "head": "cpu"},
        "notes": ["6 B are offloaded that need not be: --strategy optimal keeps them"],
        "max_context": None,
    }


def test_a_map_is_read_plain_or_from_a_document():
    expected = {"embed": GPU0, "layers.0": GPU0, "layers.1": CPU, "head": CPU}
    assert parse_map(json.dumps(document()), "x") == expected
    assert parse_map(json.dumps(document()["device_map"]), "x") == expected


def test_devices_have_one_spelling():
    text = '{"a": 1, "b": "cuda:1", "c": "cuda", "d": "cpu", "e": "mps:0", "f": "xpu", "g": "disk"}'
    assert {k: str(d) for k, d in parse_map(text, "x").items()} == {
        "a": "cuda:1",
        "b": "cuda:1",
        "c": "cuda:0",
        "d": "cpu",
        "e": "mps",
        "f": "xpu:0",
        "g": "disk",
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "broken JSON: Expecting value at line 1"),
        ('{"a": 0,', "broken JSON"),
        ("[]", "no device map"),
        ("{}", "no device map"),
        ("0", "no device map"),
        ('{"kind": "devctl.plan"}', "no device map"),
        ('{"a": -1}', "puts 'a' on -1"),
        ('{"a": 1.5}', "puts 'a' on 1.5"),
        ('{"a": true}', "puts 'a' on true"),
        ('{"a": null}', "puts 'a' on null"),
        ('{"a": "gpu:0"}', "puts 'a' on \"gpu:0\""),
        ('{"a": "meta"}', "puts 'a' on \"meta\""),
        ('{"a": {"b": 0}}', "puts 'a' on"),
        ('{"a": 0, "a": 1}', "has the key 'a' twice"),
        ("[" * 100_000, "no device map"),
        ('{"a": ' + "9" * 5000 + "}", "no device map"),
    ],
)
def test_malformed_maps(text, said):
    with pytest.raises(UsageError) as raised:
        parse_map(text, "map.json")
    assert said in raised.value.message
    assert raised.value.message.startswith("map.json")


@given(st.text(max_size=30) | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps))
def test_maps_are_read_or_refused(text):
    try:
        assert parse_map(text, "x")
    except UsageError as error:
        assert error.message.startswith("x ")


@pytest.mark.parametrize(
    ("device_map", "refused"),
    [
        ({"": 0}, None),
        ({"": "cpu"}, None),
        ({"a": 0, "b": 1}, None),
        ({"a": 0, "b": "cpu"}, "cpu"),
        ({"a": 0, "b": "disk"}, "disk"),
        ({"": "disk"}, "disk"),
        ({"a": "cpu", "b": "disk"}, "cpu or disk"),
    ],
)
def test_what_a_quantizer_refuses_to_offload(device_map, refused):
    model = tree({"a": {"w": 1}, "b": {"w": 1}}, quantisation="nf4", no_offload=frozenset({"cpu", "disk"}))
    devices = {name: Device.gpu(to) if isinstance(to, int) else Device.from_str(to) for name, to in device_map.items()}
    placement = make_placement(model, devices, Budgets(devices=((Device.cpu(), 9),), given=True), strategy=None)
    note = f"transformers refuses to load nf4 weights with a part on {refused}"
    assert [n for n in placement.notes if "refuses" in n] == ([note] if refused else [])


@pytest.mark.parametrize(("embed", "head"), [(GPU0, GPU1), (GPU0, CPU), (CPU, GPU0), (CPU, DISK), (DISK, GPU0)])
@pytest.mark.parametrize("differ", [True, False])
def test_two_weights_that_a_checkpoint_has_both_have_to_share_a_device(embed, head, differ):
    model = layers(10, embed=4, head=4, head_is_tied=True)
    model = replace(model, untied=frozenset({"head.w"})) if differ else loading(model, head__w=4)
    device_map = {"embed": embed, "layers": GPU0, "head": head}
    (finding,) = validate(model, device_map, (GPU0, GPU1, CPU, DISK))
    assert finding == (
        f"head.w is on {head} and embed.w on {embed}: the checkpoint has both, and transformers compares them once "
        "they are loaded, for which they have to be on one device"
    )
    assert not [fault for fault in find_faults(model, device_map) if "head" in fault]
    (note,) = [
        note
        for note in make_placement(model, device_map, Budgets(devices=((GPU0, 99),), given=True), strategy=None).notes
        if note.startswith("head.w")
    ]
    assert "one tensor" not in note
    assert validate(model, {"": GPU0}, (GPU0,)) == ()


def with_gaps(gap):
    use = DeviceUse(device=GPU0, budget=100, modules=(), used=60, state=10, activations=10, unallocated=gap, overhead=5)
    return tight((use,))


def test_a_device_with_room_for_tensors_and_not_for_gaps_between_them_is_told():
    assert with_gaps(15) == ()
    (said,) = with_gaps(16)
    assert "fits only with PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True;" in said
    assert "up to 16 B in gaps, 1 B more than is left on cuda:0" in said


def test_what_does_not_fit_anyway_is_not_called_tight():
    use = DeviceUse(device=GPU0, budget=84, modules=(), used=60, state=10, activations=10, unallocated=9, overhead=5)
    assert tight((use,)) == ()
