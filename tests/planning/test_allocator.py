"""Whether torch's allocator is told to leave no gaps, and what a check and a load then say."""

import json

import pytest

import devctl
from devctl.devices import Device
from devctl.inventory.hypothetical import parse_devices
from devctl.planning.allocator import leaves_gaps
from devctl.planning.gates import tight
from tests.conftest import CONFIGS

OLD, HIP, NEW = "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF", "PYTORCH_ALLOC_CONF"
TOLD = "expandable_segments:True"
GPU = Device.gpu(0)


@pytest.fixture(autouse=True)
def linux(monkeypatch):
    monkeypatch.setattr("sys.platform", "linux")


@pytest.mark.parametrize("name", [OLD, HIP])
@pytest.mark.parametrize("torch", [None, "2.6.0", "2.9.1+cu128", "3.0"])
def test_every_torch_heeds_the_older_names(name, torch):
    assert not leaves_gaps({name: TOLD}, torch)
    assert not leaves_gaps({name: f"garbage_collection_threshold:0.8, {TOLD}"}, torch)


@pytest.mark.parametrize("torch", [None, "2.6.0", "2.9.1+cu128", "2.10.0", "?"])
def test_the_newer_name_is_not_heeded_by_all(torch):
    assert leaves_gaps({NEW: TOLD}, torch)
    assert not leaves_gaps({NEW: TOLD, OLD: TOLD}, torch)


@pytest.mark.parametrize("torch", ["2.11.0", "2.13.0a0+git12", "3.0"])
def test_the_newer_name_is_heeded_by_newer_ones(torch):
    assert not leaves_gaps({NEW: TOLD}, torch)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {OLD: ""},
        {OLD: "expandable_segments:False"},
        {OLD: "expandable_segments:true"},
        {OLD: "expandable_segments"},
        {OLD: f"{TOLD},expandable_segments:False"},
        {OLD: "max_split_size_mb:32"},
        {OLD: TOLD, NEW: "max_split_size_mb:32"},
        {NEW: TOLD, HIP: "expandable_segments:False"},
        {"OTHER": TOLD},
    ],
)
def test_whatever_else_is_said_leaves_gaps(environment):
    assert leaves_gaps(environment, "2.13.0")


def test_windows_has_no_such_segments(monkeypatch):
    monkeypatch.setattr("sys.platform", "win32")
    assert leaves_gaps({OLD: TOLD}, "2.13.0")


@pytest.fixture(scope="module")
def planned():
    return devctl.plan(CONFIGS / "tiny-llama", "1GiB,cpu=8GiB", context_length=1000, batch_size=4, overhead="0B")


@pytest.mark.parametrize("with_model", [False, True])
@pytest.mark.parametrize(
    ("free", "told", "ok"), [("all", False, True), ("no gaps", False, False), ("no gaps", True, True)]
)
def test_a_check_holds_the_gaps_against_the_board_as_the_allocator_is_set(
    planned, free, told, ok, with_model, tmp_path, monkeypatch
):
    (gpu,) = (use for use in planned.placement.devices if use.device == GPU)
    assert gpu.unallocated > 0
    room = gpu.total + (gpu.unallocated if free == "all" else 0)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(planned.to_document()))
    if told:
        monkeypatch.setenv(OLD, TOLD)
    model = CONFIGS / "tiny-llama" if with_model else None
    verdict = devctl.check(device_map=path, model=model, inventory=parse_devices(f"{room}B,cpu=8GiB"))
    assert verdict.ok is ok
    (found,) = (finding for finding in verdict.findings if finding.requirement == "cuda:0")
    assert found.wanted == gpu.total + (0 if told else gpu.unallocated)
    assert ("in gaps of torch's allocator" in found.said) is not told
    assert ("it has room with PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True" in found.said) is not ok


def test_a_plan_that_says_less_of_gaps_than_its_model_is_not_believed(planned, tmp_path):
    (gpu,) = (use for use in planned.placement.devices if use.device == GPU)
    document = planned.to_document()
    document["devices"][0]["unallocated"] = 0
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(document))
    here = parse_devices(f"{gpu.total}B,cpu=8GiB")
    assert devctl.check(device_map=path, inventory=here).ok
    assert not devctl.check(device_map=path, model=CONFIGS / "tiny-llama", inventory=here).ok


def test_a_load_says_before_that_gaps_may_be_too_many(planned):
    (gpu,) = (use for use in planned.placement.devices if use.device == GPU)
    beside = {GPU: gpu.state + gpu.activations}
    needs = gpu.used + beside[GPU]
    here = parse_devices(f"{needs + 10}B,cpu=8GiB")
    placement = planned.placement
    assert not [*tight(placement, beside, {GPU: 10}, here)]
    (said,) = tight(placement, beside, {GPU: 11}, here)
    assert "11 B in gaps" in said
    assert said.endswith("set PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True")
    (said,) = tight(placement, {GPU: beside[GPU] + 11}, {GPU: 11}, here)
    assert said.endswith("expect it to run out of memory")
