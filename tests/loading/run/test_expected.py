"""What a load's own run should hold, beside what torch's allocator gave out for it."""

import json

import pytest
import torch

from devctl.devices import Device
from devctl.loading.run.allocations import _changes, counted
from devctl.loading.run.expected import beside_weights, workloads
from devctl.loading.run.inputs import prepare
from devctl.models.files.resolve import resolve
from devctl.models.footprint import Kernels
from devctl.models.skeleton import read_skeleton
from devctl.models.tracing.trace import trace_footprint
from devctl.models.tree import sizes
from tests import small_models
from tests.marks import slow

# convolutions take what the CPU's library needs to lay them out, which differs by processor
PREDICTED = ["t5", "mamba", "gpt-oss", "bart", "whisper", "bert", "vit", "clip", "gemma2", "deberta"]
OF_MODALITIES = ["qwen2-vl", "clap", "llava", "speech-to-text", "timesformer", "rwkv", "musicgen", "patchtst"]


def cpu(done):
    report = json.loads(done.out)
    (device,) = report["devices"]
    return report, device


def assert_equal_peaks(report, device):
    beside = device["predicted_peak"] - device["predicted"]
    assert beside == pytest.approx(report["smoke"]["allocated"], rel=0.001)
    assert device["peak"] == device["measured"] + report["smoke"]["allocated"]


@pytest.mark.parametrize("name", [*PREDICTED[:2], *slow(*PREDICTED[2:])])
def test_the_peak_is_the_predicted_one(devctl, checkpoint, name):
    done = devctl("load", checkpoint(name), "--map", "cpu", "--batch-size", "2", "--max-new-tokens", "2", "--json")
    assert done.code == 0, done.err
    assert_equal_peaks(*cpu(done))


@pytest.mark.parametrize("name", [*OF_MODALITIES[:1], *slow(*OF_MODALITIES[1:])])
def test_the_peak_with_images_and_sounds(devctl, saved, name):
    done = devctl("load", saved(name), "--map", "cpu", "--max-new-tokens", "2", "--json")
    assert done.code == 0, done.err
    assert_equal_peaks(*cpu(done))


def test_a_longer_text_takes_more(devctl, checkpoint):
    peaks = []
    for length in (8, 56):
        done = devctl("load", checkpoint("llama"), "--map", "cpu", "--context-length", length, "--json")
        report, device = cpu(done)
        assert_equal_peaks(report, device)
        peaks.append(device["peak"])
    assert peaks[0] < peaks[1]


def test_a_peak_that_is_not_predicted(devctl, saved):
    done = devctl("load", saved("vilt"), "--map", "cpu", "--json")
    report, device = cpu(done)
    assert device["predicted_peak"] is None
    assert device["peak"] > device["measured"]
    assert any(note.startswith("the peak is not predicted: ViltModel can't be traced: ") for note in report["notes"])
    assert report["ok"]


def test_what_libraries_take_is_noted(devctl, saved):
    done = devctl("load", saved("wav2vec2"), "--map", "cpu", "--batch-size", "8", "--json")
    report, device = cpu(done)
    noted = any("a convolution's scratch, is not known before" in note for note in report["notes"])
    assert noted == (device["peak"] > 1.02 * device["predicted_peak"])


def test_a_part_on_disk_is_not_held(devctl, checkpoint, tmp_path):
    """Files that are mapped to read weights from are told as allocations, and are none."""
    (tmp_path / "map.json").write_text(json.dumps({"": "cpu", "model.layers.1": "disk", "lm_head": "disk"}))
    done = devctl("load", checkpoint("llama"), "--map", tmp_path / "map.json", "--json")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    on_cpu, on_disk = report["devices"]
    assert_equal_peaks(report, on_cpu)
    assert on_disk["predicted_peak"] is on_disk["peak"] is None


# what is expected on accelerators


@pytest.mark.parametrize("name", ["llama", *slow("t5", "whisper")])
def test_a_forward_and_a_generate_are_expected(checkpoint, name):
    source = resolve(str(checkpoint(name)))
    skeleton = read_skeleton(source)
    inputs = prepare(source, skeleton, prompt=None, new_tokens=9, trust_remote_code=False, batch_size=2)
    on_gpu = {"": Device.gpu(0)}
    forward, generate = workloads(skeleton, inputs, on_gpu, 9)
    assert forward.kernels is generate.kernels is Kernels.ACCELERATOR
    assert (forward.new_tokens, generate.new_tokens) == (0, 8)
    assert generate.context_length == forward.context_length + 8
    assert workloads(skeleton, inputs, on_gpu, 0) == (forward,)
    found = [trace_footprint(skeleton, each, given=inputs.tensors) for each in (forward, generate)]
    both = beside_weights(skeleton.tree, on_gpu, found)
    assert both == {Device.gpu(0): max(beside_weights(skeleton.tree, on_gpu, [each])[Device.gpu(0)] for each in found)}


def test_offloaded_weights_are_on_the_device_that_runs_them(checkpoint):
    source = resolve(str(checkpoint("llama")))
    skeleton = read_skeleton(source)
    inputs = prepare(source, skeleton, prompt=None, new_tokens=0, trust_remote_code=False)
    gpu = Device.gpu(0)
    whole = {"model": gpu, "lm_head": gpu}
    (workload,) = workloads(skeleton, inputs, whole, 0)
    found = [trace_footprint(skeleton, workload, given=inputs.tensors)]

    def beside(**elsewhere):
        return beside_weights(skeleton.tree, whole | elsewhere, found)[gpu]

    for off in (Device.cpu(), Device.disk()):
        assert beside() < beside(lm_head=off) <= beside() + sizes(skeleton.tree)["lm_head"]


# counting


def test_what_is_allocated_is_counted():
    assert counted(lambda: [torch.ones(1000), torch.ones(10)][1].sum().item()) == (10.0, 4040)
    kept = torch.ones(5000)
    assert counted(lambda: kept.view(50, 100).t().shape) == ((100, 50), 0)


class Event:
    def __init__(self, kind, size=0):
        self._kind, self._size = kind, size

    def kind(self):
        return self._kind

    def cpu_memory_usage(self):
        return self._size


def test_mapped_files_are_not_counted():
    given = ["push", 64, "pop", 10**9, "push", 32, "pop", -(10**9), -64, -32]
    events = [Event(e) if isinstance(e, str) else Event("memory_alloc", e) for e in given]
    assert list(_changes(events)) == [64, 32, -64, -32]


@pytest.mark.parametrize("name", ["_enable_profiler_legacy", "_disable_profiler_legacy"])
def test_a_torch_without_that_profiler(monkeypatch, name):
    monkeypatch.delattr(torch.autograd, name)
    assert counted(lambda: 5) == (5, None)


def test_what_raises_ends_the_count():
    with pytest.raises(ZeroDivisionError):
        counted(lambda: 1 / 0)
    assert counted(lambda: torch.ones(4).shape)[1] == 16


def test_the_tiny_models_are_known():
    assert set(PREDICTED) <= set(small_models.TINY)
    assert set(OF_MODALITIES) <= set(small_models.MODALITIES)
