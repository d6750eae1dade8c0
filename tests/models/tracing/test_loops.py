"""Loops over a text that are cut short: they take what all of their rounds take."""

import functools
import tempfile

import pytest
import transformers

from devctl.models.files.resolve import resolve
from devctl.models.footprint import Workload, peak_bytes
from devctl.models.skeleton import read_skeleton
from devctl.models.tracing import trace
from devctl.models.tracing.fake_run import FakeModel
from devctl.models.tracing.held import Held
from devctl.models.tracing.loops import FEWEST, Loops
from devctl.models.tracing.trace import trace_footprint
from devctl.units import format_bytes
from tests import small_models
from tests.small_models import MEASURED, of_class

_DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "layer_types": ["linear_attention", "linear_attention", "linear_attention", "full_attention"],
}
LOOPING = {
    "qwen3-next": lambda: of_class("Qwen3NextForCausalLM", **_DELTA),
    "qwen3.5": lambda: of_class("Qwen3_5ForCausalLM", **_DELTA),
    "mamba": lambda: of_class("MambaForCausalLM"),
    "rwkv": MEASURED["rwkv"],
    "minimax": lambda: of_class("MiniMaxForCausalLM"),
    "recurrent-gemma": lambda: of_class("RecurrentGemmaForCausalLM"),
}


@functools.cache
def skeleton(name):
    model_class, config = LOOPING[name]()
    config.architectures = [model_class.__name__]
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        return read_skeleton(resolve(folder), dtype="bfloat16")


# chunks of 64 and of 256 tokens, and single ones; what is written in place, and what is joined from a list
@pytest.mark.parametrize(
    ("name", "tokens"),
    [
        ("qwen3-next", 700),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in (("qwen3.5", 700), ("minimax", 2100))),
    ],
)
def test_chunks_of_a_text_take_what_all_of_them_take(name, tokens):
    whole_and_cut(name, tokens)


@pytest.mark.parametrize(
    "name", ["mamba", *(pytest.param(n, marks=pytest.mark.slow) for n in ("rwkv", "recurrent-gemma"))]
)
def test_tokens_of_a_text_take_what_all_of_them_take(name):
    whole_and_cut(name, 40)


def whole_and_cut(name, tokens):
    model = FakeModel(skeleton(name), Workload(context_length=tokens + 1), alike=True, most=100_000)
    model.fewest_rounds = None
    whole, took = model.generate(tokens), model.operations
    assert not model.strides
    model.fewest_rounds = FEWEST
    assert trace.is_close(model.generate(tokens)[0], whole[0])
    assert model.strides
    assert model.operations < took


@pytest.mark.slow
def test_what_linear_attention_takes_grows_with_the_text_and_not_faster():
    four, sixteen = (trace_footprint(skeleton("qwen3.5"), Workload(context_length=n)) for n in (4097, 16_385))
    assert peak_bytes(sixteen) == pytest.approx(4 * peak_bytes(four), rel=0.01)
    assert "loops over the text" in sixteen.notes[0]
    assert not sixteen.exact
    a_token = 4 * (4 + 64 * 6 + 6 * (16 + 16) + 2 * 16 * 16 // 64)  # of 4 heads of values
    assert f"at most {format_bytes(16_385 * a_token)} beside its inputs: read from their code" in sixteen.notes[1]


def test_a_short_text_runs_all_rounds_and_is_exact():
    footprint = trace_footprint(skeleton("mamba"), Workload(context_length=32))
    assert footprint.exact
    assert footprint.notes == ()


def test_a_loop_over_something_else_is_left_alone():
    loops = Loops(16_383, lambda: 0, FEWEST)
    assert list(loops(48)) == list(range(48))
    assert list(loops(5, 200, 3)) == list(range(5, 200, 3))
    assert loops.strides == set()


@pytest.mark.parametrize(("rounds", "stride"), [(16_383, 1), (256, 64), (255, 64), (64, 256), (128, 128)])
def test_a_loop_over_tokens_or_chunks_is_cut_to_its_ends(rounds, stride):
    import torch

    loops = Loops(16_383, lambda: 0, FEWEST)
    assert list(loops(rounds)) == [0, 1, 2, 3, rounds - 3, rounds - 2, rounds - 1]
    assert loops.strides == {stride}
    assert loops.join(torch.stack, ([torch.empty(2, 3)] * 7,), {"dim": -1}).shape == (2, 3, rounds)


@pytest.mark.slow
def test_what_grows_with_a_text_is_extrapolated_where_loops_cannot_be_cut(monkeypatch):
    workload = Workload(context_length=101)
    model = FakeModel(skeleton("mamba"), workload, alike=True, most=100_000)
    model.fewest_rounds = None
    monkeypatch.setattr(trace, "_lengths", lambda *_: (20, 35, 50))
    prefill, last, (note,) = trace._grown(model, workload, ValueError())
    whole = model.generate(100)[0]
    assert prefill.state == whole.state
    assert last.state == whole.state
    for name, nbytes in whole.peaks.beside.items():
        assert prefill.peaks.beside[name] == pytest.approx(nbytes, rel=0.01, abs=64)
    assert "extrapolated from 50 tokens" in note


def test_a_text_beyond_a_window_that_no_short_text_fills_is_not_extrapolated(monkeypatch):
    workload = Workload(context_length=16_384)
    model = FakeModel(skeleton("recurrent-gemma"), workload, alike=True, most=1000)
    monkeypatch.setattr(trace, "_lengths", lambda *_: (255, 511, 767))
    with pytest.raises(ValueError, match="beyond 2048 tokens does not show"):
        trace._grown(model, workload, ValueError())


@pytest.mark.slow
def test_an_image_is_within_the_short_texts_that_loops_are_checked_on():
    text = {"hidden_size": 64, "num_hidden_layers": 4, "vocab_size": 300, "head_dim": 16, "intermediate_size": 64}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    vision = {"hidden_size": 32, "depth": 1, "num_heads": 2, "intermediate_size": 32, "out_hidden_size": 64}
    config = transformers.Qwen3_5Config(
        text_config={**text, **heads, **_DELTA}, vision_config=vision, image_token_id=290, vision_start_token_id=291
    )
    config.architectures = ["Qwen3_5ForConditionalGeneration"]
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        found = trace_footprint(read_skeleton(resolve(folder), dtype="bfloat16"), Workload(context_length=4608))
    assert any("196 tokens of the text" in note for note in found.notes)
    assert not any("not counted" in note for note in found.notes)


def test_a_loop_whose_rounds_differ_runs_whole(monkeypatch):
    """Each round of it keeps more than the one before, which its ends do not tell."""
    from transformers.models.llama import modeling_llama

    code = "def forward(self, x):\n    return x + sum(map(len, [torch.empty(n, 4096) for n in range(x.shape[1])]))"
    exec(code, vars(modeling_llama))  # noqa: S102 - where it is defined, its loops can be cut
    monkeypatch.setattr(modeling_llama.LlamaMLP, "forward", vars(modeling_llama).pop("forward"))
    footprint = trace_footprint(small_models.skeleton("llama"), Workload(context_length=101))
    assert footprint.exact
    assert peak_bytes(footprint) > sum(range(100)) * 4096 * 4


def test_only_the_steps_that_are_asked_for_are_told():
    model = FakeModel(small_models.skeleton("llama"), Workload(context_length=12), alike=True, most=100_000)
    whole = model.generate(8, steps=(0, 1, 2))
    assert model.generate(8, steps=(0, 2)) == [whole[0], whole[2]]
    assert len({str(step.state) for step in whole}) == 3


def test_in_brief_a_block_of_each_kind_runs_and_no_allocator_is_asked():
    model = FakeModel(small_models.skeleton("llama"), Workload(context_length=12), alike=True, most=100_000)
    (whole,), took = model.generate(8), model.operations
    model.in_brief = True
    (brief,) = model.generate(8)
    assert model.operations < took
    assert (brief.state, brief.executed, brief.output) == (whole.state, whole.executed, whole.output)
    assert brief.held == Held() != whole.held
