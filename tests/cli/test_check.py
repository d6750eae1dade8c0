"""``devctl check``: the honest no, with every reason."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.inventory import boxes
from tests.inventory.boxes import GIB
from tests.marks import one_in

PEERS = [boxes.pair(a, b, level=50) for a in range(8) for b in range(a + 1, 8)]


@pytest.fixture
def eight(machine, ran):
    machine(boxes.eight())
    return ran


def test_requirements_that_are_met(machine, ran):
    machine("".join([boxes.system(), *(boxes.board(n, used=0) for n in range(8)), *PEERS]))
    result = ran("check", "--gpus", 8, "--gpu-memory", "70GiB", "--driver", "550", "--cuda", "12.4", "--p2p", "--idle")
    assert (result.code, result.err) == (0, "")
    assert [line.partition(": ")[2].partition(":")[0] for line in result.out.splitlines()] == [
        "--gpus 8",
        "--gpu-memory 70.0 GiB",
        "--idle",
        "--p2p",
        "--driver 550",
        "--cuda 12.4",
    ]


def test_every_unmet_requirement_is_named_on_a_line(eight, tmp_path):
    result = eight(
        "check", "--gpus", 9, "--gpu-memory", "77GiB", "--ram", "900TiB", "--disk", f"{tmp_path}=900TiB",
        "--compute-capability", "10.0", "--driver", "575", "--cuda", "13.0", "--total-gpu-memory", "1TiB",
    )  # fmt: skip
    assert (result.code, result.out) == (3, "")
    first, *lines = result.err.splitlines()
    assert first == "devctl: refused: 8 of 8 requirements are not met"
    assert [line.split()[1].rstrip(":") for line in lines] == [
        "--gpus", "--gpu-memory", "--compute-capability", "--total-gpu-memory", "--ram", "--disk", "--driver", "--cuda",
    ]  # fmt: skip
    assert "cuda:7: 71.0 GiB free" in lines[1]


def test_one_unmet_requirement(eight):
    assert eight("check", "--cuda", "13").err == ("devctl: refused: the requirement is not met\n  - --cuda 13: 12.4\n")


def test_the_verdict_as_json(eight):
    result = eight("check", "--gpus", 2, "--cuda", "13.0", "--json")
    assert result.code == 3
    document = json.loads(result.out)
    assert (document["schema"], document["kind"], document["ok"], document["selected"]) == (
        1,
        "devctl.check",
        False,
        [],
    )
    assert document["requirements"] == [
        {"requirement": "--gpus 2", "met": True, "said": "8 usable", "wanted": 2, "found": 8},
        {"requirement": "--cuda 13.0", "met": False, "said": "12.4", "wanted": "13.0", "found": "12.4"},
    ]


@pytest.mark.parametrize(
    ("box", "words"),
    one_in(
        3,
        [
            (boxes.one_lost(), "nvidia 1: GPU is lost"),
            (boxes.system(init=18), "of different versions"),
            (boxes.system(init=9), "not loaded"),
            (boxes.system(init=4), "no permission"),
            (boxes.system(), "0 usable"),
            (boxes.mig_box(), "hidden (mig-limit)"),
        ],
    ),
)
def test_a_fault_is_the_reason(machine, ran, box, words):
    machine(box)
    result = ran("check", "--gpus", 4)
    assert result.code == 3
    assert words in result.err


def test_selecting(eight):
    assert eight("check", "--select", 2).out == "0,1\n"
    assert eight("check", "--select", 2, "--format", "uuid").out == f"{boxes.uuid(0)},{boxes.uuid(1)}\n"
    document = json.loads(eight("check", "--select", 1, "--format", "json").out)
    assert [a["uuid"] for a in document["selected"]] == [boxes.uuid(0)]
    assert document["selected"][0]["memory_free"] == 78 * GIB


def test_selecting_prints_nothing_when_too_few_qualify(eight):
    result = eight("check", "--select", 3, "--gpu-memory", "77GiB")
    assert (result.code, result.out) == (3, "")
    assert "--gpu-memory 77.0 GiB: 2 of 8 usable GPUs have enough, 3 wanted" in result.err


def test_selecting_from_what_is_visible_names_it_as_outside(eight, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "6,4")
    assert eight("check", "--select", 1).out == "4\n"
    assert eight("check", "--select", 2).out == "4,6\n"


def test_selecting_by_an_uncertain_index_says_so(machine, ran):
    machine(boxes.mixed())
    result = ran("check", "--select", 1)
    assert (result.code, result.out) == (0, "0\n")
    assert "--format uuid" in result.err
    assert ran("check", "--select", 1, "--format", "uuid").err == ""


def test_selecting_a_mig_instance(machine, ran):
    machine(boxes.mig_box())
    assert ran("check", "--select", 1, "--format", "uuid", "--gpu-memory", "9GiB").out == f"{boxes.uuid(0)}\n"
    monkey = boxes.mig_uuid(1, 1)
    machine(boxes.system() + boxes.board(1, mig=1) + boxes.mig(0, 0, used=GIB) + boxes.mig(0, 1, uuid=monkey))
    assert ran("check", "--select", 1, "--format", "uuid").out == f"{monkey}\n"
    result = ran("check", "--select", 1)
    assert (result.code, result.out) == (2, "")
    assert "--format uuid" in result.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "nothing to check"),
        (["--gpu-memory", "lots"], "--gpu-memory: 'lots' is not a size"),
        (["--ram", "-1"], "--ram"),
        (["--disk", "/data"], "PATH=SIZE"),
        (["--disk", "=5GiB"], "PATH=SIZE"),
        (["--disk", "/data=x"], "--disk: 'x' is not a size"),
        (["--compute-capability", "90"], "--compute-capability: '90' is no compute capability; write it like 9.0"),
        (["--compute-capability", "120"], "write it like 12.0"),
        (["--cuda", "twelve"], "--cuda: 'twelve' is not a version"),
        (["--compute-capability", "sm_80"], "--compute-capability"),
        (["--gpus", "-1"], "--gpus"),
        (["--select", "0"], "--select"),
        (["some/model"], "only for --map"),
    ],
)
def test_wrong_usage(ran, arguments, words):
    result = ran("check", *arguments)
    assert (result.code, result.out) == (2, "")
    assert words in result.err


def write(path, document):
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def plan(**devices):
    names = {name.replace("_", ":"): size for name, size in devices.items()}
    return {
        "schema": 1,
        "kind": "devctl.plan",
        "model": {},
        "device_map": {f"layers.{n}": name for n, name in enumerate(names)},
        "devices": [{"device": name, "used": size, "budget": None} for name, size in names.items()],
    }


def test_a_plan_that_fits(eight, tmp_path):
    path = write(tmp_path / "plan.json", plan(cuda_0=78 * GIB, cuda_7=GIB, cpu=1, disk=1 << 60))
    result = eight("check", "--map", path)
    assert result.code == 0
    assert "ok: cuda:0: needs 78.0 GiB of 78.0 GiB free" in result.out


def test_a_plan_that_no_longer_fits(eight, tmp_path):
    path = write(tmp_path / "plan.json", plan(cuda_0=79 * GIB, cuda_8=GIB, cpu=1 << 60))
    result = eight("check", "--map", path)
    assert result.code == 3
    assert "refused: 3 of 3" in result.err
    assert "cuda:0: needs 79.0 GiB of 78.0 GiB free, 1.00 GiB short" in result.err
    assert "cuda:8: is not here" in result.err


def test_a_plain_map_is_checked_for_its_devices(eight, tmp_path):
    path = write(tmp_path / "map.json", {"model.embed_tokens": 0, "model.layers": "cuda:7", "lm_head": "cpu"})
    assert eight("check", "--map", path).code == 0
    write(path, {"model": 0, "lm_head": 9})
    result = eight("check", "--map", path)
    assert (result.code, result.err.count("\n")) == (3, 2)
    assert "cuda:9: is not here" in result.err


def test_a_map_and_requirements_together(eight, tmp_path):
    path = write(tmp_path / "map.json", {"": 9})
    result = eight("check", "--map", path, "--cuda", "13")
    assert "--cuda 13" in result.err
    assert "cuda:9" in result.err


LLAMA = Path(__file__).parents[1] / "configs/llama-3.1-8b"
"""8,030,261,248 parameters of 2 bytes; the head is 1.05 GB of them."""


def test_a_plain_map_with_its_model_is_checked_for_bytes(machine, ran, tmp_path):
    machine(boxes.system() + boxes.board(total=16 * GIB))
    path = write(tmp_path / "map.json", {"": 0})
    result = ran("check", "--map", path, LLAMA)
    assert result.code == 3
    assert "cuda:0: needs 15.0 GiB of 14.0 GiB free" in result.err
    write(path, {"model": 0, "lm_head": "cpu"})
    result = ran("check", "--map", path, LLAMA)
    assert (result.code, result.out.count("ok: ")) == (0, 2)
    assert "ok: cpu: needs 0.98 GiB of " in result.out


def test_a_map_of_another_model_is_refused(machine, ran, tmp_path):
    machine(boxes.eight())
    path = write(tmp_path / "map.json", {"model": 0, "head": 9})
    result = ran("check", "--map", path, LLAMA)
    assert result.code == 3
    assert "'head' is no module or tensor of LlamaForCausalLM" in result.err
    assert "no device for 1 tensors: lm_head.weight" in result.err
    assert "cuda:9: is not here" in result.err


def test_a_model_that_cannot_be_read(machine, ran, tmp_path):
    path = write(tmp_path / "map.json", {"": "cpu"})
    assert ran("check", "--map", path, tmp_path / "nothing").code == 4


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ("{", "JSON"),
        ("[1]", "no device map"),
        ("{}", "no device map"),
        ({"a": "gpu"}, "no device"),
        ({"a": True}, "no device"),
        ({**plan(cpu=1), "schema": 2}, "schema 2"),
        ({**plan(cpu=1), "device_map": None}, "no device map"),
        ({**plan(cpu=1), "devices": [{"device": "cpu"}]}, '"used"'),
        ({**plan(cpu=1), "devices": [{"device": "gpu:1", "used": 1}]}, '"devices"'),
        ({**plan(cpu=1), "devices": [{"device": 1, "used": 1}]}, '"devices"'),
        ({**plan(cpu=1), "devices": [{"device": "cpu", "used": -1}]}, '"used"'),
        ({**plan(cpu=1), "devices": None}, '"used"'),
        ("[" * 100_000, "map"),
    ],
)
def test_malformed_maps(ran, tmp_path, document, words):
    result = ran("check", "--map", write(tmp_path / "map.json", document))
    assert (result.code, result.out) == (2, "")
    assert words in result.err


def test_a_map_that_is_not_there_or_no_text(ran, tmp_path):
    assert "No such file" in ran("check", "--map", tmp_path / "none.json").err
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in ran("check", "--map", tmp_path / "bytes").err
    assert ran("check", "--map", tmp_path).code == 2


def test_five_lines_of_a_ci_script_gate_a_job(nvml_folder, tmp_path):
    (tmp_path / "machine").write_text(boxes.eight())
    (tmp_path / "devctl").write_text(f'#!/bin/sh\nexec {sys.executable} -m devctl "$@"\n')
    (tmp_path / "devctl").chmod(0o755)
    script = """set -eu
gpus=$(devctl check --select 2 --gpu-memory "$NEEDS" --ram 1GiB --disk .=1MiB --cuda 12.1 --format uuid)
export CUDA_VISIBLE_DEVICES="$gpus"
devctl check --gpus 2 --gpu-memory "$NEEDS" >&2
echo "training on $CUDA_VISIBLE_DEVICES"
"""

    def run(needs):
        environment = {
            **os.environ,
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "LD_LIBRARY_PATH": str(nvml_folder),
            "FAKE_NVML": str(tmp_path / "machine"),
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "NEEDS": needs,
        }
        return subprocess.run(["sh", "-c", script], env=environment, capture_output=True, text=True, check=False)

    passed = run("40GiB")
    assert passed.stdout == f"training on {boxes.uuid(0)},{boxes.uuid(1)}\n"
    assert passed.returncode == 0
    refused = run("78GiB")
    assert (refused.returncode, refused.stdout) == (3, "")
    assert "--gpu-memory 78.0 GiB: 1 of 8 usable GPUs has enough, 2 wanted; cuda:1: 77.0 GiB free" in refused.stderr


@pytest.mark.parametrize(
    "args", [["--ram", "40"], ["--gpu-memory", "0"], ["--total-gpu-memory", "1e9"], ["--disk", "/=9"], ["--ram", ""]]
)
def test_a_size_without_a_unit_is_refused(devctl, args):
    done = devctl("check", *args)
    assert done.code == 2
    assert "has no unit; write it like" in done.err
