"""What the variables hide, and which nobody reads."""

import pytest

from devctl.inventory.probes.host import UNKNOWN
from devctl.inventory.records import Inventory
from devctl.planning.examining.findings import Level
from devctl.planning.examining.private import Private
from devctl.planning.examining.variables import judge_allocator, judge_variables
from tests.inventory import boxes

EMPTY = Inventory(accelerators=(), host=UNKNOWN, disks=())


def judged(environment, inventory=EMPTY):
    found = judge_variables(environment, inventory, Private())
    assert len({finding.subject for finding in found}) == len(found)
    return {finding.subject: (finding.level, finding.text, finding.next_step) for finding in found}


@pytest.fixture
def eight(probe):
    def look(value, **others):
        found = probe(boxes.eight(), CUDA_VISIBLE_DEVICES=value, **others)
        return Inventory(accelerators=found.accelerators, host=UNKNOWN, disks=(), notes=found.notes)

    return look


def test_nothing_set_is_nothing_to_say(eight):
    assert judged({"PATH": "/bin", "HOME": "/root", "HF_HOME": "/x"}, eight("0,1,2,3,4,5,6,7")) == {}


def test_boards_that_are_hidden_are_counted(eight):
    level, text, step = judged({"CUDA_VISIBLE_DEVICES": "0,2"}, eight("0,2"))["CUDA_VISIBLE_DEVICES"]
    assert (level, text) == (Level.NOTE, "hides 6 of 8 boards (NVIDIA H100 80GB HBM3)")
    assert step == "leave the variable out to see them"


@pytest.mark.parametrize("value", ["", "-1", "none", "void", "NoDevFiles"])
def test_hiding_every_board_on_purpose_is_no_fault(eight, value):
    level, text, _ = judged({"CUDA_VISIBLE_DEVICES": value}, eight(value))["CUDA_VISIBLE_DEVICES"]
    assert level is Level.NOTE
    assert "every GPU" in text


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("0-3", "read as 0"),
        ("0;1", "read as 0"),
        ("0 1", "read as 0"),
        ("0:1", "read as 0"),
        ("1.5", "read as 1"),
        ("0x1", "read as 0"),
        ("1st", "read as 1"),
        ("[0,1]", "no list of indices"),
        ("cuda:0", "no list of indices"),
        ("gpu0", "no list of indices"),
        ("all", "no list of indices"),
        ("'0'", "no list of indices"),
        ("0,cuda:1", "no list of indices"),
        ("GPU-00000001,1", "mixture"),
        ("9", "names no GPU"),
        ("0,0", "second time"),
        ("0,9,1", "hides all behind it"),
        ("GPU-ffff", "fits no GPU here"),
    ],
)
def test_what_cuda_reads_otherwise_than_it_is_written_is_broken(eight, value, said):
    level, text, step = judged({"CUDA_VISIBLE_DEVICES": value}, eight(value))["CUDA_VISIBLE_DEVICES"]
    assert level is Level.BROKEN
    assert said in text
    assert step


@pytest.mark.parametrize(
    "value", ["0", "0,1", " 0, 1", "0,1,", "+1", "007", "GPU-00000001", "GPU-00000001, GPU-00000002"]
)
def test_what_cuda_reads_as_it_is_written_is_no_fault(eight, value):
    level, text, _ = judged({"CUDA_VISIBLE_DEVICES": value}, eight(value))["CUDA_VISIBLE_DEVICES"]
    assert level is Level.NOTE
    assert text.startswith("hides ")


def test_where_there_is_no_board_no_spelling_does_harm():
    assert judged({"CUDA_VISIBLE_DEVICES": "0-3"})["CUDA_VISIBLE_DEVICES"][0] is Level.NOTE
    assert judged({"CUDA_VISIBLE_DEVICE": "0"})["CUDA_VISIBLE_DEVICE"][0] is Level.NOTE


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("CUDA_VISIBLE_DEVICE", "CUDA_VISIBLE_DEVICES"),
        ("cuda_visible_devices", "CUDA_VISIBLE_DEVICES"),
        ("CUDA_VISBLE_DEVICES", "CUDA_VISIBLE_DEVICES"),
        ("CUDA_VISIBLES_DEVICES", "CUDA_VISIBLE_DEVICES"),
        ("CUDA_VISIBLE_DEVIES", "CUDA_VISIBLE_DEVICES"),
        ("CUDA_VISIBLE_GPUS", "CUDA_VISIBLE_DEVICES"),
        ("CUDA_DEVICES_VISIBLE", "CUDA_VISIBLE_DEVICES"),
    ],
)
def test_a_misspelt_name_is_broken_where_it_would_choose_among_boards(eight, name, meant):
    inventory = eight("0,1,2,3,4,5,6,7")
    assert judged({name: "0"}, inventory)[name] == (Level.BROKEN, "is set, and nobody reads it", f"is {meant} meant?")
    assert judged({name: "0", meant: "0,1,2,3,4,5,6,7"}, inventory)[name][0] is Level.NOTE


@pytest.mark.parametrize("name", ["VISIBLE_DEVICES", "GPU_VISIBLE_DEVICES", "ROCM_VISIBLE_DEVICES", "CUDA_DEVICES"])
def test_a_name_that_somebody_may_have_for_his_own_ends_is_a_note(eight, name):
    assert judged({name: "0"}, eight("0,1,2,3,4,5,6,7"))[name][0] is Level.NOTE


def test_that_nothing_is_downloaded_is_a_note():
    assert judged({"HF_HUB_OFFLINE": "1"})["HF_HUB_OFFLINE"][0] is Level.NOTE
    assert judged({"HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": ""}) == {}


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA_VISIBLE_DEVICES",
        "ASCEND_RT_VISIBLE_DEVICES",
        "HABANA_VISIBLE_DEVICES",
        "HF_HUB_DISABLE_TELEMETRY",
        "HF_TOKEN_PATH",
        "HF_ASSETS_CACHE",
        "HF_XET_CACHE",
        "HF_HUB_ETAG_TIMEOUT",
        "CUDA_HOME",
        "DEVCTL_CACHE_DIR",
        "DEVCTL_DEBUG",
        "HIP_VISIBLE_DEVICES",
        "PATH",
        "",
    ],
)
def test_names_that_somebody_reads_are_no_misspellings(name):
    assert "is set, and nobody reads it" not in str(judged({name: "all"}))


@pytest.mark.parametrize(
    ("name", "meant"),
    [("TRANSFORMERS_CACHE", "HF_HUB_CACHE"), ("HF_CACHE", "HF_HUB_CACHE"), ("DEVCTL_CACHE_DIRS", "DEVCTL_CACHE_DIR")],
)
def test_folders_named_by_what_nobody_reads_are_a_note(name, meant):
    assert judged({name: "/x"})[name] == (Level.NOTE, "is set, and nobody reads it", f"is {meant} meant?")


@pytest.mark.parametrize("value", ["pci_bus_id", "PCI", "", "PCI_BUS_ID "])
def test_an_order_that_cuda_does_not_know_is_told(eight, value):
    level, text, step = judged({"CUDA_DEVICE_ORDER": value}, eight("0,1,2,3,4,5,6,7"))["CUDA_DEVICE_ORDER"]
    assert level is Level.BROKEN
    assert text == f"CUDA ignores {value!r}"
    assert "PCI_BUS_ID" in step


def test_orders_that_it_knows_are_not():
    assert judged({"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}) == judged({"CUDA_DEVICE_ORDER": "FASTEST_FIRST"}) == {}


def test_a_containers_variable_hides_nothing_within(eight):
    inventory = eight("0,1,2,3,4,5,6,7")
    level, text, _ = judged({"NVIDIA_VISIBLE_DEVICES": "0,1"}, inventory)["NVIDIA_VISIBLE_DEVICES"]
    assert (level, text.partition(",")[0]) == (Level.NOTE, "names 2 of 8 boards")
    assert judged({"NVIDIA_VISIBLE_DEVICES": "all"}, inventory) == {}


def test_a_setting_of_the_allocator_that_torch_does_not_heed_is_told(monkeypatch):
    monkeypatch.setattr("sys.platform", "linux")
    asked = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    (told,) = judge_allocator(asked, "2.9.1+cu128")
    assert (told.level, told.subject) == (Level.NOTE, "PYTORCH_ALLOC_CONF")
    assert told.text == "says expandable_segments:True, which torch 2.9.1+cu128 does not heed here"
    assert told.next_step.startswith("set PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True")
    assert judge_allocator(asked, "2.13.0") == []
    assert judge_allocator({}, "2.9.1") == judge_allocator({"PYTORCH_ALLOC_CONF": "backend:native"}, "2.9.1") == []
    assert judge_allocator({"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}, "2.9.1") == []
    (contrary,) = judge_allocator({**asked, "PYTORCH_HIP_ALLOC_CONF": "expandable_segments:False"}, "2.13.0")
    assert contrary.subject == "PYTORCH_ALLOC_CONF"
