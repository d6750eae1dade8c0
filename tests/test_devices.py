import contextlib
import dataclasses
import json
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import devctl
from devctl import ComponentDevice, Device, DeviceMap, DeviceType

DEVICES = st.builds(Device, st.sampled_from(DeviceType), st.none() | st.integers(0, 99))
MAPS = st.dictionaries(st.text(max_size=8), DEVICES, max_size=5).map(DeviceMap)


def test_importing_devctl_imports_no_framework():
    code = "import sys, devctl; print(sorted({'torch', 'transformers', 'rich', 'pynvml'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_public_names():
    assert set(devctl.__all__) >= {"DeviceType", "Device", "DeviceMap", "ComponentDevice"}


# DeviceType


@pytest.mark.parametrize(
    ("member", "text"),
    [
        (DeviceType.CPU, "cpu"),
        (DeviceType.GPU, "cuda"),
        (DeviceType.DISK, "disk"),
        (DeviceType.MPS, "mps"),
        (DeviceType.XPU, "xpu"),
    ],
)
def test_device_type_is_its_string(member, text):
    assert str(member) == text
    assert DeviceType.from_str(text) is member


@pytest.mark.parametrize("text", ["CPU", "gpu", "Cuda", "", "meta", "cuda:0"])
def test_device_type_rejects_other_strings(text):
    with pytest.raises(ValueError, match="Unknown device type string"):
        DeviceType.from_str(text)


# Device


def test_device_equality_and_hash():
    assert Device(DeviceType.GPU, 1) == Device.gpu(1)
    assert Device.gpu(1) != Device.gpu(2)
    assert Device.gpu(0) != Device(DeviceType.GPU)
    assert Device.cpu() != Device.disk()
    assert {Device.gpu(1): "x"}[Device.from_str("cuda:1")] == "x"


def test_device_constructors():
    assert Device.cpu() == Device(DeviceType.CPU, None)
    assert Device.gpu() == Device(DeviceType.GPU, 0)
    assert Device.gpu(3) == Device(DeviceType.GPU, 3)
    assert Device.gpu(id=3) == Device(DeviceType.GPU, 3)
    assert Device.disk() == Device(DeviceType.DISK)
    assert Device.mps() == Device(DeviceType.MPS)
    assert Device.xpu() == Device(DeviceType.XPU)


def test_device_rejects_negative_ids():
    with pytest.raises(ValueError, match="-1"):
        Device(DeviceType.GPU, -1)
    with pytest.raises(ValueError, match="-7"):
        Device.gpu(-7)


@pytest.mark.parametrize("id", [True, 1.5, "1"])
def test_device_rejects_ids_that_are_no_integers(id):
    with pytest.raises(ValueError, match="integer"):
        Device(DeviceType.GPU, id)


def test_device_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Device.gpu(1).id = 2


@pytest.mark.parametrize(
    ("text", "device"),
    [
        ("cpu", Device.cpu()),
        ("cuda", Device(DeviceType.GPU)),
        ("cuda:0", Device.gpu(0)),
        ("cuda:12", Device.gpu(12)),
        ("mps:0", Device(DeviceType.MPS, 0)),
        ("xpu:1", Device(DeviceType.XPU, 1)),
        ("disk", Device.disk()),
    ],
)
def test_device_from_str(text, device):
    assert Device.from_str(text) == device
    assert str(device) == text


@pytest.mark.parametrize(
    "text",
    ["cuda:", "cuda:x", "cuda:1:2", "cuda:-1", "cuda:1.5", "cuda: 1", "cuda:+1", "cuda:1_0", "cuda:²", ":1", "gpu:0"],
)
def test_device_from_str_rejects(text):
    with pytest.raises(ValueError):
        Device.from_str(text)


@given(DEVICES)
def test_device_round_trip(device):
    assert Device.from_str(str(device)) == device


@given(st.text(max_size=10))
def test_device_from_str_reads_or_raises_value_error(text):
    with contextlib.suppress(ValueError):
        assert str(Device.from_str(text)).split(":")[0] == text.split(":")[0]


# DeviceMap


def test_device_map_is_a_mapping_of_pairs():
    m = DeviceMap({"a": Device.gpu(1), "b": Device.cpu()})
    assert m["a"] == Device.gpu(1)
    assert "b" in m
    assert "c" not in m
    assert len(m) == 2
    assert list(m) == [("a", Device.gpu(1)), ("b", Device.cpu())]
    m["c"] = Device.disk()
    assert len(m) == 3
    assert m == DeviceMap({"a": Device.gpu(1), "b": Device.cpu(), "c": Device.disk()})
    assert m != DeviceMap({"a": Device.gpu(1)})
    with pytest.raises(KeyError):
        m["missing"]


def test_device_map_first_device():
    assert DeviceMap({"a": Device.disk(), "b": Device.cpu()}).first_device == Device.disk()
    assert DeviceMap({}).first_device is None


def test_device_map_to_dict():
    assert DeviceMap({"a": Device.gpu(1), "b": Device.cpu()}).to_dict() == {"a": "cuda:1", "b": "cpu"}


@given(MAPS)
def test_device_map_round_trip_through_json(m):
    assert DeviceMap.from_dict(json.loads(json.dumps(m.to_dict()))) == m


@pytest.mark.parametrize("value", ["gpu", "cuda:x", "", 0, None])
def test_device_map_from_dict_rejects(value):
    with pytest.raises(ValueError):
        DeviceMap.from_dict({"a": value})
    with pytest.raises(ValueError):
        DeviceMap.from_dict([value])


def test_device_map_from_hf():
    hf = {"a": 0, "b": "cpu", "c": "cuda:2", "d": torch.device("cuda", 1), "e": torch.device("cpu"), "f": "disk"}
    assert DeviceMap.from_hf(hf).to_dict() == {
        "a": "cuda:0",
        "b": "cpu",
        "c": "cuda:2",
        "d": "cuda:1",
        "e": "cpu",
        "f": "disk",
    }


@pytest.mark.parametrize("value", [1.0, None, True, Device.cpu(), ["cpu"], torch.float32])
def test_device_map_from_hf_rejects_other_types(value):
    with pytest.raises(TypeError):
        DeviceMap.from_hf({"a": value})


@pytest.mark.parametrize("value", ["meta", torch.device("meta"), "gpu", -1])
def test_device_map_from_hf_rejects_devices_that_hold_no_weights(value):
    with pytest.raises(ValueError):
        DeviceMap.from_hf({"a": value})


# ComponentDevice

MAP = DeviceMap({"a": Device.disk(), "b": Device.gpu(1), "c": Device.cpu()})
SINGLE = ComponentDevice.from_single(Device.gpu(1))
MULTIPLE = ComponentDevice.from_multiple(MAP)


def test_component_device_holds_exactly_one():
    with pytest.raises(ValueError, match="neither be empty"):
        ComponentDevice()
    with pytest.raises(ValueError, match="both"):
        ComponentDevice(Device.cpu(), MAP)


def test_component_device_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SINGLE._single_device = Device.cpu()


def test_component_device_equality():
    assert ComponentDevice.from_str("cuda:1") == SINGLE
    assert ComponentDevice.from_multiple(DeviceMap(dict(MAP))) == MULTIPLE
    assert SINGLE != MULTIPLE


def test_component_device_from_str():
    assert ComponentDevice.from_str("cpu") == ComponentDevice.from_single(Device.cpu())
    with pytest.raises(ValueError, match="Unknown device type string"):
        ComponentDevice.from_str("gpu")


@pytest.mark.parametrize(
    "make", [lambda: ComponentDevice.from_single(Device.disk()), lambda: ComponentDevice.from_str("disk")]
)
def test_component_device_rejects_a_single_disk(make):
    with pytest.raises(ValueError, match="disk device can only be used as a part of device maps"):
        make()


def test_component_device_has_multiple_devices():
    assert not SINGLE.has_multiple_devices
    assert MULTIPLE.has_multiple_devices


def test_component_device_first_device():
    assert SINGLE.first_device == SINGLE
    assert MULTIPLE.first_device == ComponentDevice.from_single(Device.gpu(1))


@pytest.mark.parametrize("mapping", [{}, {"a": Device.disk()}])
def test_component_device_without_a_usable_device(mapping):
    with pytest.raises(ValueError, match="No usable device found"):
        ComponentDevice.from_multiple(DeviceMap(mapping)).first_device  # noqa: B018


def test_component_device_to_torch():
    assert SINGLE.to_torch() == torch.device("cuda:1")
    assert SINGLE.to_torch_str() == "cuda:1"
    assert ComponentDevice.from_str("cpu").to_torch() == torch.device("cpu")


@pytest.mark.parametrize(
    ("text", "expected"), [("cuda:2", 2), ("cuda:0", 0), ("cuda", 0), ("cpu", -1), ("mps", -1), ("xpu:0", -1)]
)
def test_component_device_to_spacy(text, expected):
    assert ComponentDevice.from_str(text).to_spacy() == expected


@pytest.mark.parametrize("convert", ["to_torch", "to_torch_str", "to_spacy"])
def test_component_device_maps_have_no_single_form(convert):
    with pytest.raises(ValueError, match="Only single devices"):
        getattr(MULTIPLE, convert)()


def test_component_device_to_hf():
    assert SINGLE.to_hf() == "cuda:1"
    assert ComponentDevice.from_str("cpu").to_hf() == "cpu"
    assert MULTIPLE.to_hf() == {"a": "disk", "b": 1, "c": "cpu"}
    assert ComponentDevice.from_multiple(DeviceMap({"": Device(DeviceType.GPU)})).to_hf() == {"": 0}


def test_update_hf_kwargs_sets_the_key_that_fits():
    assert SINGLE.update_hf_kwargs({"x": 1}, overwrite=False) == {"x": 1, "device": "cuda:1"}
    assert MULTIPLE.update_hf_kwargs({"x": 1}, overwrite=True) == {"x": 1, "device_map": MULTIPLE.to_hf()}


def test_update_hf_kwargs_mutates_and_returns_the_same_dict():
    kwargs = {}
    assert SINGLE.update_hf_kwargs(kwargs, overwrite=False) is kwargs
    assert kwargs == {"device": "cuda:1"}


@pytest.mark.parametrize(
    "present", [{"device": "cpu"}, {"device_map": "auto"}, {"device": None}, {"device": 0, "device_map": {}}]
)
@pytest.mark.parametrize("device", [SINGLE, MULTIPLE])
def test_update_hf_kwargs_without_overwrite_keeps_either_key(device, present):
    kwargs = dict(present)
    assert device.update_hf_kwargs(kwargs, overwrite=False) is kwargs
    assert kwargs == present


@pytest.mark.parametrize("present", [{"device": "cpu"}, {"device_map": "auto"}, {"device": 0, "device_map": {}}])
def test_update_hf_kwargs_with_overwrite_leaves_one_key(present):
    assert SINGLE.update_hf_kwargs(dict(present), overwrite=True) == {"device": "cuda:1"}
    assert MULTIPLE.update_hf_kwargs(dict(present), overwrite=True) == {"device_map": MULTIPLE.to_hf()}


def test_update_hf_kwargs_needs_overwrite_by_name():
    with pytest.raises(TypeError):
        SINGLE.update_hf_kwargs({}, True)


def test_component_device_to_dict():
    assert SINGLE.to_dict() == {"type": "single", "device": "cuda:1"}
    assert MULTIPLE.to_dict() == {"type": "multiple", "device_map": {"a": "disk", "b": "cuda:1", "c": "cpu"}}


@given(
    st.one_of(
        DEVICES.filter(lambda d: d.type != DeviceType.DISK).map(ComponentDevice.from_single),
        MAPS.map(ComponentDevice.from_multiple),
    )
)
def test_component_device_round_trip_through_json(device):
    assert ComponentDevice.from_dict(json.loads(json.dumps(device.to_dict()))) == device


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"type": "single"},
        {"type": "multiple"},
        {"type": "both"},
        {"device": "cpu"},
        {"type": "single", "device": "gpu"},
        {"type": "single", "device": "disk"},
        {"type": "single", "device": 5},
        {"type": "multiple", "device_map": {"a": 0}},
        {"type": "multiple", "device_map": 0},
        None,
        [],
    ],
)
def test_component_device_from_dict_rejects(data):
    with pytest.raises(ValueError):
        ComponentDevice.from_dict(data)


@pytest.fixture
def backends(monkeypatch):
    """Says which backends torch finds."""

    def find(*names):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in names)
        monkeypatch.setattr(torch.xpu, "is_available", lambda: "xpu" in names)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in names)

    for variable in ("HAYSTACK_MPS_ENABLED", "HAYSTACK_XPU_ENABLED"):
        monkeypatch.delenv(variable, raising=False)
    return find


@pytest.mark.parametrize(
    ("found", "expected"),
    [(("cuda", "xpu", "mps"), "cuda:0"), (("xpu", "mps"), "xpu"), (("mps",), "mps"), ((), "cpu")],
)
def test_resolve_device_order(backends, found, expected):
    backends(*found)
    assert ComponentDevice.resolve_device(None) == ComponentDevice.from_str(expected)
    assert ComponentDevice.resolve_device() == ComponentDevice.from_str(expected)


def test_resolve_device_switches(backends, monkeypatch):
    backends("xpu", "mps")
    monkeypatch.setenv("HAYSTACK_XPU_ENABLED", "false")
    assert ComponentDevice.resolve_device() == ComponentDevice.from_str("mps")
    monkeypatch.setenv("HAYSTACK_MPS_ENABLED", "false")
    assert ComponentDevice.resolve_device() == ComponentDevice.from_str("cpu")
    monkeypatch.setenv("HAYSTACK_XPU_ENABLED", "true")
    assert ComponentDevice.resolve_device() == ComponentDevice.from_str("xpu")


def test_resolve_device_keeps_what_it_is_given(backends):
    backends("cuda")
    cpu = ComponentDevice.from_str("cpu")
    assert ComponentDevice.resolve_device(cpu) is cpu
    assert ComponentDevice.resolve_device(MULTIPLE) is MULTIPLE
