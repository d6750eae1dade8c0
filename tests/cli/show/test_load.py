"""The verdict of a load, before the rest of its report."""

from dataclasses import replace

import pytest

import devctl
from devctl.cli.show import load as show
from devctl.cli.show import staged as show_staged
from devctl.devices import Device
from devctl.distributed.report import Compared, DistributedReport, RankRow
from devctl.loading.measure import DeviceBytes
from devctl.loading.proofs.verdict import Proof, ProofName
from tests.conftest import CONFIGS

MIB = 2**20


@pytest.fixture(scope="module")
def report():
    return devctl.load(CONFIGS / "tiny-llama", {"": "cpu"}, load_format="dummy", verify=True, max_new_tokens=0)


def held(device, *, predicted_peak, peak, predicted=MIB, measured=MIB):
    return DeviceBytes(device=device, predicted=predicted, measured=measured, predicted_peak=predicted_peak, peak=peak)


ONE, OTHER, CPU = Device.gpu(0), Device.gpu(1), Device.cpu()


def test_it_says_that_it_ran_and_on_what(report):
    said, model = show.load_report(report).splitlines()[:2]
    assert said.startswith("loaded and ran where the map says and as the CPU does, with random weights; peak ")
    assert model == "LlamaForCausalLM 15.1 MiB in bfloat16, given map, 16 tokens × 1"
    without = replace(report, verification=None, load_format="auto")
    assert show.verdict_line(without).startswith("loaded and ran where the map says; peak ")
    assert report.verification is not None
    some = replace(report, verification=replace(report.verification, not_compared=("a block: why",)))
    assert "as the CPU does, but for 1 block not compared," in show.verdict_line(some)


@pytest.mark.parametrize(
    ("devices", "said"),
    [
        ((held(CPU, predicted_peak=3 * MIB, peak=2 * MIB),), "peak 2.00 MiB on cpu, 3.00 MiB predicted"),
        ((held(CPU, predicted_peak=None, peak=2 * MIB),), "peak 2.00 MiB on cpu, not predicted"),
        (
            (held(ONE, predicted_peak=4 * MIB, peak=3 * MIB), held(OTHER, predicted_peak=4 * MIB, peak=5 * MIB)),
            "the peaks of 2 devices were 75.0% to 125.0% of the predicted",
        ),
        (
            # the CPU only holds what is offloaded: nobody counts there
            (held(ONE, predicted_peak=4 * MIB, peak=4 * MIB), held(CPU, predicted_peak=4 * MIB, peak=None)),
            "peak 4.00 MiB on cuda:0, 4.00 MiB predicted",
        ),
        (
            (held(ONE, predicted_peak=4 * MIB, peak=4 * MIB), held(OTHER, predicted_peak=None, peak=MIB)),
            "peak 4.00 MiB on cuda:0, 4.00 MiB predicted; 1.00 MiB on cuda:1, not predicted",
        ),
        (
            (held(Device.mps(), predicted_peak=4 * MIB, peak=None),),
            "peak not measured, 1.00 MiB of weights, as predicted",
        ),
        (
            (held(Device.mps(), predicted_peak=4 * MIB, peak=None, measured=2 * MIB),),
            "peak not measured, 2.00 MiB of weights, 1.00 MiB predicted",
        ),
    ],
)
def test_it_has_what_was_measured_beside_what_was_predicted(report, devices, said):
    assert show.verdict_line(replace(report, devices=devices)).partition("; ")[2] == said


def test_it_says_which_proof_fails(report):
    proofs = (
        Proof(name=ProofName.TENSORS, passed=True, said="all"),
        Proof(name=ProofName.OUTPUTS, passed=False, said="NaN", block="model.layers.1"),
        Proof(name=ProofName.REPEAT, passed=False, said="other"),
    )
    said = show.verdict_line(replace(report, proofs=proofs, ok=False)).partition("; ")[0]
    assert said == "does not run as the map says: the proof of its outputs fails, first in model.layers.1"


def test_it_keeps_to_eighty_columns(report, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    shown = show.load_report(report).splitlines()
    assert max(map(len, shown)) <= 80
    assert "peak" in " ".join(shown[:2])


def ranks(*, ok=True, reference="equal", device="cuda:0", measured=MIB):
    row = {"planned": "cuda:0", "device": device, "used": MIB, "measured": measured}
    return {"ok": ok, "reference": reference, "ranks": [row, row]}


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (ranks(), "loaded and ran in 2 ranks, with the tokens of one process; 2.00 MiB of weights, as predicted"),
        (
            ranks(device="cpu"),
            "loaded and ran in 2 ranks on other devices than planned, with the tokens of one process; "
            "2.00 MiB of weights, as predicted",
        ),
        (
            ranks(ok=False, reference="not_run", measured=2 * MIB),
            "loaded and ran, and nothing proves that it ran right; 4.00 MiB of weights, 2.00 MiB predicted",
        ),
        (ranks(ok=False), "does not run as the plan says; 2.00 MiB of weights, as predicted"),
        (ranks(ok=False, reference="different"), "does not run as the plan says; 2.00 MiB of weights, as predicted"),
    ],
)
def test_that_of_ranks_is_first_too(found, said):
    assert show_staged.verdict_line(found) == said


def test_the_whole_report_of_ranks_begins_with_it(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    row = RankRow(
        rank=0,
        host="a",
        stage=0,
        planned="cuda:0",
        device="cuda:0",
        layers=(0, 4),
        used=MIB,
        measured=MIB,
        total=2 * MIB,
        peak=None,
        tensors=3,
        load_seconds=1.0,
        seconds=2.0,
        ids=((1, 2, 3),),
    )
    report = DistributedReport(
        model="org/model",
        model_class="LlamaForCausalLM",
        dtype="bfloat16",
        backend="nccl",
        tensor_parallel=1,
        batch_size=2,
        inputs="random",
        prompt=1024,
        ranks=(row, replace(row, rank=1, host="b", stage=1, layers=(4, 8))),
        reference=Compared.EQUAL,
        reference_said="tokens and logits are those of one process",
        weights=None,
        text=None,
        ok=True,
        notes=("a note",),
    )
    lines = show_staged.staged_report(report.to_document()).splitlines()
    assert " ".join(lines[:2]) == (
        "loaded and ran in 2 ranks, with the tokens of one process; 2.00 MiB of weights, as predicted"
    )
    assert lines[2] == "LlamaForCausalLM in bfloat16, 2 ranks over nccl, 1,024 + 3 tokens × 2"
    assert lines[-1] == "note: a note"
