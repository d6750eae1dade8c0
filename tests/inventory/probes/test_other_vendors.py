"""AMD, Intel, Apple and others, on folders of small files and captured text."""

import plistlib

import pytest

from devctl.inventory.probes import amd, apple, intel, npu, pci
from devctl.inventory.records import Hidden


def on_bus(sys, bus_id, pci_id, driver, *, class_="38000", **files):
    folder = sys / "bus/pci/devices" / bus_id
    folder.mkdir(parents=True)
    bound = f"DRIVER={driver}\n" if driver else ""
    (folder / "uevent").write_text(f"{bound}PCI_CLASS={class_}\nPCI_ID={pci_id}\nPCI_SLOT_NAME={bus_id}\n")
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return folder


def kfd(sys, number, *, bus=0, gpu_id=0, simd=0, cores=0, gfx=0):
    folder = sys / f"class/kfd/kfd/topology/nodes/{number}"
    folder.mkdir(parents=True)
    (folder / "gpu_id").write_text(f"{gpu_id}\n")
    (folder / "properties").write_text(
        f"cpu_cores_count {cores}\nsimd_count {simd}\nlocation_id {bus << 8}\ndomain 0\ngfx_target_version {gfx}\n"
    )


@pytest.fixture
def mi300(tmp_path):
    """Two Instincts; the compute driver counts the one on the later bus first."""
    facts = {
        "mem_info_vram_total": 1000,
        "mem_info_vram_used": 100,
        "gpu_busy_percent": 7,
        "product_name": "AMD Instinct MI300X",
        "numa_node": 1,
        "hwmon__hwmon3__temp1_input": 45000,
        "hwmon__hwmon3__power1_average": 150_000_000,
        "hwmon__hwmon3__power1_cap": 750_000_000,
    }
    on_bus(tmp_path, "0000:05:00.0", "1002:74A1", "amdgpu", unique_id="aaaa1111", **facts)
    on_bus(tmp_path, "0000:85:00.0", "1002:74A1", "amdgpu", unique_id="bbbb2222", **facts)
    kfd(tmp_path, 0, cores=96)
    kfd(tmp_path, 1, bus=0x85, gpu_id=77, simd=1216, gfx=90402)
    kfd(tmp_path, 2, bus=0x05, gpu_id=55, simd=1216, gfx=90402)
    (tmp_path / "kfd").write_text("")
    return tmp_path


def amd_probe(sys, **environment):
    return amd.probe(environment, pci.scan(sys), sys, sys / "kfd").accelerators


def test_amd(mi300):
    (mi300 / "class/kfd/kfd/proc/123").mkdir(parents=True)
    (mi300 / "class/kfd/kfd/proc/123/vram_55").write_text("64\n")
    (mi300 / "class/kfd/kfd/proc/123/vram_77").write_text("0\n")
    first, second = amd_probe(mi300)
    assert (str(first.device), str(second.device)) == ("cuda:1", "cuda:0")
    assert (first.index, first.cuda_index, first.uuid, first.architecture) == (0, 1, "GPU-aaaa1111", "gfx942")
    assert (first.memory_total, first.memory_used, first.memory_free) == (1000, 100, 900)
    assert (first.utilization, first.temperature, first.power, first.power_limit) == (7, 45, 150.0, 750.0)
    assert (first.name, first.numa_node, first.compute_capability) == ("AMD Instinct MI300X", 1, None)
    assert [(p.pid, p.memory) for p in first.processes] == [(123, 64)]
    assert second.processes == ()


@pytest.mark.parametrize(
    ("environment", "devices"),
    [
        ({}, ["cuda:1", "cuda:0"]),
        ({"HIP_VISIBLE_DEVICES": "1"}, ["cuda:0", None]),
        ({"CUDA_VISIBLE_DEVICES": "1"}, ["cuda:0", None]),
        ({"ROCR_VISIBLE_DEVICES": "1", "HIP_VISIBLE_DEVICES": "0"}, ["cuda:0", None]),
        ({"ROCR_VISIBLE_DEVICES": "GPU-bbbb2222"}, [None, "cuda:0"]),
        ({"ROCR_VISIBLE_DEVICES": "1,0", "HIP_VISIBLE_DEVICES": "1"}, [None, "cuda:0"]),
        ({"HIP_VISIBLE_DEVICES": ""}, [None, None]),
    ],
)
def test_amds_variables(mi300, environment, devices):
    found = amd_probe(mi300, **environment)
    assert [a.device and str(a.device) for a in found] == devices
    assert all((a.device is None) == (a.hidden is Hidden.ENVIRONMENT) for a in found)


@pytest.mark.parametrize(
    ("environment", "notes"),
    [
        ({}, ()),
        ({"HIP_VISIBLE_DEVICES": "1", "CUDA_VISIBLE_DEVICES": "9"}, ()),
        ({"HIP_VISIBLE_DEVICES": "2"}, ("HIP_VISIBLE_DEVICES: its entry '2' names no GPU: there are 2, from 0 on",)),
        ({"CUDA_VISIBLE_DEVICES": ""}, ("CUDA_VISIBLE_DEVICES: it is empty, which hides every GPU",)),
        (
            {"ROCR_VISIBLE_DEVICES": "0", "HIP_VISIBLE_DEVICES": "1"},
            ("HIP_VISIBLE_DEVICES: its entry '1' names no GPU: there are 1, from 0 on",),
        ),
        ({"ROCR_VISIBLE_DEVICES": "GPU-x"}, ("ROCR_VISIBLE_DEVICES: its entry 'GPU-x' fits no GPU here, or several",)),
    ],
)
def test_an_entry_of_amds_variables_that_names_nothing_is_told(mi300, environment, notes):
    found = amd.notes(amd_probe(mi300, **environment), environment)
    assert len(found) == len(notes)
    assert all(note.startswith(start) for note, start in zip(found, notes, strict=True))


@pytest.mark.parametrize(
    ("mask", "notes"),
    [
        (None, ()),
        ("", ()),
        ("1,0.1", ()),
        ("2", ("ZE_AFFINITY_MASK: its entry '2' names no GPU: there are 2, from 0 on",)),
        ("0,x", ("ZE_AFFINITY_MASK: its entry 'x' names no GPU: there are 2, from 0 on",)),
    ],
)
def test_an_entry_of_intels_variable_that_names_nothing_is_told(mask, notes):
    assert intel.notes(mask, 2) == notes


def test_no_permission_for_amds_compute_device(mi300):
    (mi300 / "kfd").unlink()
    found = amd_probe(mi300)
    assert [a.device for a in found] == [None, None]
    assert "no permission" in found[0].fault
    assert found[0].memory_free == 900


def test_an_amd_board_without_its_driver(tmp_path):
    on_bus(tmp_path, "0000:05:00.0", "1002:74A1", None)
    (found,) = amd_probe(tmp_path)
    assert (found.fault, found.memory_total, found.hidden) == (
        "no amdgpu driver: the board is bound to none",
        None,
        None,
    )


def test_an_amd_board_that_the_compute_driver_does_not_know(tmp_path):
    on_bus(tmp_path, "0000:05:00.0", "1002:6995", "amdgpu", mem_info_vram_total=5, mem_info_vram_used="busy")
    (found,) = amd_probe(tmp_path)
    assert (found.device, found.hidden, found.fault) == (None, Hidden.UNSUPPORTED, None)
    assert (found.memory_total, found.memory_free) == (5, None)


def test_an_apu_computes_in_the_hosts_memory(tmp_path):
    on_bus(
        tmp_path, "0000:c1:00.0", "1002:1586", "amdgpu", class_="30000",
        mem_info_vram_total=512, mem_info_vram_used=500, mem_info_gtt_total=64000, mem_info_gtt_used=4000,
    )  # fmt: skip
    kfd(tmp_path, 0, bus=0xC1, gpu_id=9, simd=80, cores=32, gfx=110501)
    (tmp_path / "kfd").write_text("")
    (found,) = amd_probe(tmp_path)
    assert (found.memory_pool, found.memory_total, found.memory_free) == ("host", 64000, 60000)
    assert (found.architecture, str(found.device)) == ("gfx1151", "cuda:0")


@pytest.mark.parametrize(("version", "name"), [(90010, "gfx90a"), (100302, "gfx1032"), (110000, "gfx1100"), (0, None)])
def test_gfx_versions(version, name):
    assert amd.parse_gfx_version(version) == name


@pytest.mark.parametrize("text", ["", "simd_count\n", "simd_count x\nlocation_id 5", "simd_count 64\n"])
def test_malformed_kfd_nodes(text):
    assert amd.parse_kfd_node(1, "5", text) is None


def intel_probe(sys, **environment):
    return intel.probe(environment, pci.scan(sys), sys).accelerators


def test_intel(tmp_path):
    on_bus(tmp_path, "0000:00:02.0", "8086:A780", "i915", class_="30000")
    on_bus(tmp_path, "0000:03:00.0", "8086:E20B", "xe", tile0__physical_vram_size_bytes="0x2f0000000")
    on_bus(tmp_path, "0000:07:00.0", "8086:56A0", "i915", drm__card1__lmem_total_bytes=16225243136)
    old, battlemage, arc = intel_probe(tmp_path)
    assert (old.device, old.hidden, old.memory_pool) == (None, Hidden.UNSUPPORTED, "host")
    assert (str(battlemage.device), battlemage.memory_total, battlemage.memory_free) == ("xpu:0", 0x2F0000000, None)
    assert (str(arc.device), arc.memory_total, arc.memory_pool) == ("xpu:1", 16225243136, None)


def test_intels_new_integrated_graphics_can_be_used(tmp_path):
    on_bus(tmp_path, "0000:00:02.0", "8086:64A0", "xe", class_="30000")
    (found,) = intel_probe(tmp_path)
    assert (str(found.device), found.memory_pool) == ("xpu:0", "host")


def test_an_intel_gpu_without_a_driver_and_a_card_that_is_no_gpu(tmp_path):
    on_bus(tmp_path, "0000:03:00.0", "8086:E20B", None)
    on_bus(tmp_path, "0000:75:00.0", "8086:4944", "qat_4xxx", class_="120000")
    (found,) = intel_probe(tmp_path)
    assert "no driver" in found.fault


def test_intels_variable_hides(tmp_path):
    on_bus(tmp_path, "0000:03:00.0", "8086:E20B", "xe")
    on_bus(tmp_path, "0000:07:00.0", "8086:56A0", "xe")
    first, second = intel_probe(tmp_path, ZE_AFFINITY_MASK="1")
    assert (first.hidden, str(second.device)) == (Hidden.ENVIRONMENT, "xpu:0")


@pytest.mark.parametrize(
    ("mask", "device", "ordinal"),
    [(None, 2, 2), ("", 2, 2), ("1,0", 1, 1), ("2", 2, 0), ("2.1", 2, 0), ("x", 0, None), ("1", 0, None)],
)
def test_affinity_mask(mask, device, ordinal):
    assert intel.parse_affinity_mask(mask, device) == ordinal


def test_apple():
    text = plistlib.dumps(
        [
            {
                "model": "Apple M3 Max",
                "gpu-core-count": 40,
                "PerformanceStatistics": {"Device Utilization %": 12, "In use system memory": 5000},
            }
        ]
    ).decode()
    (gpu,) = apple.parse_ioreg(text, None).accelerators
    assert (str(gpu.device), gpu.name, gpu.memory_pool) == ("mps", "Apple M3 Max (40 GPU cores)", "host")
    assert (gpu.utilization, gpu.memory_used) == (12, 5000)


@pytest.mark.parametrize("text", [None, "", "not a plist", "<plist><dict/></plist>", plistlib.dumps([7]).decode()])
def test_apple_without_ioreg(text):
    (gpu,) = apple.parse_ioreg(text, "Apple M1").accelerators
    assert (gpu.name, gpu.utilization, gpu.memory_pool) == ("Apple M1", None, "host")


def test_no_apple_gpu_here():
    assert apple.probe().accelerators == ()
    assert apple.sysctl("no.such.name") is None


def test_others(tmp_path):
    folder = tmp_path / "class/accel/accel0/device"
    folder.mkdir(parents=True)
    (folder / "uevent").write_text("DRIVER=habanalabs\nPCI_ID=1DA3:1020\nPCI_SLOT_NAME=0000:33:00.0\n")
    (tmp_path / "class/accel/accel_controlD0").mkdir()
    (found,) = npu.probe(tmp_path).accelerators
    assert (found.name, found.pci_bus_id, found.hidden) == ("habanalabs 1da3:1020", "0000:33:00.0", Hidden.UNSUPPORTED)


def test_nothing_where_there_is_no_such_folder(tmp_path):
    assert npu.probe(tmp_path).accelerators == ()
    assert pci.scan(tmp_path) == ()
    assert amd.kfd_nodes(tmp_path) == ()


def test_only_displays_and_accelerators_are_scanned(tmp_path):
    on_bus(tmp_path, "0000:01:00.0", "10DE:2330", "nvidia", class_="30200")
    on_bus(tmp_path, "0000:02:00.0", "144D:A808", "nvme", class_="10802")
    (tmp_path / "bus/pci/devices/0000:03:00.0").mkdir()
    (found,) = pci.scan(tmp_path)
    assert (found.bus_id, found.vendor, found.device, found.driver) == ("0000:01:00.0", "10de", "2330", "nvidia")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("00000000:17:00.0", "0000:17:00.0"),
        ("0000:0A:1F.7", "0000:0a:1f.7"),
        ("00010000:01:00.0", "10000:01:00.0"),
        ("", None),
        (None, None),
        ("17:00.0", None),
        ("x:y:z.w", None),
        ("0000:17:00", None),
    ],
)
def test_bus_ids(text, expected):
    assert pci.normal_bus_id(text) == expected


def test_numa_node_minus_one_is_none():
    assert pci.parse_numa_node("-1") is None
    assert pci.parse_numa_node("1") == 1
    assert pci.parse_numa_node("x") is None
