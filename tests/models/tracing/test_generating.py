"""What generate really does: beams, sampling, caches and chunks, predicted beside real runs on the CPU."""

import functools
import json
from dataclasses import replace

import pytest

from devctl.models.files.resolve import resolve
from devctl.models.footprint import Kernels, Workload, peak_beside_weights, peak_bytes, state_bytes
from devctl.models.skeleton import read_skeleton
from devctl.models.tracing import fake_run
from devctl.models.tracing.trace import trace_footprint
from tests import metered, small_models
from tests.conftest import CONFIGS
from tests.marks import one_in, slow

WORK = Workload(context_length=160, new_tokens=3, batch_size=2)
BEAMS = {"num_beams": 4}
CHAT = {"do_sample": True, "temperature": 0.6, "top_p": 0.9}


def large_vocabulary(config):
    config.vocab_size = 64_000


def error(name, told, work=WORK, **more):
    return metered.error(name, replace(work, generation=tuple(sorted(told.items()))), **told, **more)


@pytest.mark.parametrize("name", ["llama", *slow("t5", "gpt-oss", "gemma3")])
def test_beams_are_predicted(name):
    assert -0.02 <= error(name, BEAMS) <= 0.1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemma2", "mistral", "qwen3-moe", "bart", "phi3", "gpt_neox", "gpt2", "deepseek-v3"])
def test_beams_of_other_architectures_are_predicted(name):
    assert -0.02 <= error(name, BEAMS) <= 0.1


@pytest.mark.parametrize(
    "told",
    [
        {"do_sample": True},
        *slow(
            CHAT,
            {"do_sample": True, "top_k": 0, "typical_p": 0.8},
            {"do_sample": True, "num_beams": 3},
            {"repetition_penalty": 1.1},
        ),
    ],
    ids=str,
)
def test_sampling_from_a_large_vocabulary_is_predicted(told):
    assert -0.02 <= error("llama", told, replace(WORK, context_length=24), change=large_vocabulary) <= 0.02


@pytest.mark.slow
def test_a_large_vocabulary_without_sampling_is_predicted():
    assert error("llama", {}, replace(WORK, context_length=24), change=large_vocabulary) >= -0.02


@pytest.mark.parametrize("name", ["llama", *slow("gemma3")])
@pytest.mark.parametrize("told", [{"cache_implementation": "static"}, *slow({"use_cache": False})], ids=str)
def test_caches_are_predicted(name, told):
    assert -0.02 <= error(name, told) <= 0.1


def test_a_model_without_a_cache_keeps_none():
    told = (("use_cache", False),)
    assert (
        state_bytes(trace_footprint(small_models.skeleton("llama"), Workload(context_length=32, generation=told))) == 0
    )


@pytest.mark.parametrize(("name", "chunk"), [("llama", 64), *slow(("llama", 100), ("gemma3", 64), ("gpt-oss", 100))])
def test_a_prompt_that_is_read_in_chunks_is_predicted(name, chunk):
    work = Workload(context_length=420, new_tokens=2, batch_size=2, padded=True, prefill_chunk=chunk)
    assert -0.02 <= metered.error(name, work, prefill_chunk_size=chunk) <= 0.1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemma2", "mistral", "qwen3-moe", "phi3", "gpt_neox", "gpt2"])
def test_a_prompt_of_other_architectures_that_is_read_in_chunks_is_predicted(name):
    work = Workload(context_length=420, new_tokens=2, batch_size=2, prefill_chunk=64)
    assert -0.02 <= metered.error(name, work, prefill_chunk_size=64) <= 0.1


# what is not run here


@functools.cache
def llama(**workload):
    skeleton = read_skeleton(resolve(str(CONFIGS / "llama-3.1-8b")))
    return trace_footprint(skeleton, Workload(context_length=4096, **workload))


def cached(kind, **more):
    return llama(generation=tuple(sorted({"cache_implementation": kind, **more}.items())))


@pytest.mark.slow
def test_beams_multiply_the_cache_on_each_block():
    plain, beams = llama(), llama(generation=(("num_beams", 4),))
    assert state_bytes(beams) == 4 * state_bytes(plain)
    assert {b.name for b in beams.blocks if b.state} == {b.name for b in plain.blocks if b.state}
    half = [b for b in beams.blocks if b.name < "model.layers.2"]
    assert peak_beside_weights(half) < 0.8 * peak_bytes(beams)


def test_an_offloaded_cache_leaves_two_layers_on_the_gpu():
    plain, off = llama(), cached("offloaded")
    assert state_bytes(off) == 0
    assert peak_bytes(off) < peak_bytes(plain)
    assert peak_bytes(off) >= 2 * state_bytes(plain) / 32
    assert any("kept in RAM, 512 MiB" in note for note in off.notes)
    assert not off.exact


@pytest.mark.slow
def test_on_the_cpu_an_offloaded_cache_is_where_it_was():
    plain, off = (
        llama(kernels=Kernels.CPU, generation=told) for told in ((), (("cache_implementation", "offloaded"),))
    )
    assert peak_bytes(plain) == peak_bytes(off)


@pytest.mark.slow
def test_a_quantised_cache_is_a_share_of_the_plain_one():
    plain, four, two = llama(), cached("quantized"), cached("quantized", cache_nbits=2)
    assert state_bytes(two) < state_bytes(four) < 0.35 * state_bytes(plain)
    assert any("a cache of 4 bits is estimated" in note for note in four.notes)


@pytest.mark.parametrize("kind", ["static", *slow("offloaded_static")])
def test_a_static_cache_is_there_from_the_first_token(kind):
    found, whole = cached(kind), pytest.approx(state_bytes(llama()), rel=0.001)
    assert sum(block.prompt_state for block in found.blocks) == whole
    assert state_bytes(found) == whole


@pytest.mark.slow
def test_shorter_chunks_need_less():
    peaks = [peak_bytes(llama(prefill_chunk=chunk)) for chunk in (None, 2048, 512, 64)]
    assert peaks == sorted(peaks, reverse=True)
    assert peaks[-1] < peaks[0] / 1.6


@pytest.mark.slow
@pytest.mark.parametrize(("layers", "chunk", "batch"), [(2, 512, 1), (6, 512, 1)])
def test_gaps_that_earlier_chunks_leave_are_those_of_all_chunks_one_by_one(monkeypatch, tmp_path, layers, chunk, batch):
    """What a cache leaves behind as it grows from chunk to chunk is in the way of the last one."""

    def one_by_one(tokens, chunk):
        return [min(chunk, tokens - start) for start in range(0, tokens, chunk)]

    sizes = {"hidden_size": 2048, "num_attention_heads": 16, "head_dim": 128, "num_hidden_layers": layers}
    (tmp_path / "config.json").write_text(
        json.dumps(json.loads((CONFIGS / "llama-3.1-8b" / "config.json").read_text()) | sizes | {"vocab_size": 32000})
    )
    skeleton = read_skeleton(resolve(str(tmp_path)))
    workload = Workload(context_length=16 * chunk - 3, batch_size=batch, prefill_chunk=chunk)
    found = trace_footprint(skeleton, workload)
    monkeypatch.setattr(fake_run, "_chunks", one_by_one)
    whole = trace_footprint(skeleton, workload)
    weights = skeleton.tree.index.held[""]  # which are in place when gaps come about
    held, all_held = (weights + peak_bytes(each) + each.rounded + each.unallocated for each in (found, whole))
    assert peak_bytes(found) == pytest.approx(peak_bytes(whole), rel=0.01)
    assert whole.unallocated > 0.1 * peak_bytes(whole)
    assert 0.95 <= held / all_held <= 1.15, "gaps are a matter of luck, and the worse of two ways is taken"


def test_chunks_that_are_longer_than_the_prompt_change_nothing():
    assert peak_bytes(llama(prefill_chunk=8192)) == peak_bytes(llama())


@pytest.mark.parametrize("name", one_in(2, ["bert", "t5"]))
def test_a_model_that_reads_no_prompt_in_chunks_says_so(name):
    workload = Workload(context_length=32, prefill_chunk=8, generation=(("num_beams", 2),))
    found = trace_footprint(small_models.skeleton(name), workload).workload
    assert found.prefill_chunk is None
    assert bool(found.generation) is (name == "t5")
