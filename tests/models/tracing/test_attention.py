"""Attention as a choice: each as it is traced, beside what it really holds where it runs on a CPU."""

import functools

import pytest

from devctl.errors import UsageError
from devctl.models import attention
from devctl.models.files.resolve import resolve
from devctl.models.footprint import Workload, peak_bytes, state_bytes
from devctl.models.skeleton import read_skeleton
from devctl.models.tracing.trace import trace_footprint
from tests import metered, small_models
from tests.conftest import CONFIGS
from tests.marks import slow


@functools.cache
def skeleton(name):
    """A real model, or a small one."""
    if (CONFIGS / name).exists():
        return read_skeleton(resolve(str(CONFIGS / name)))
    return small_models.skeleton(name)


@functools.cache
def peak(name, how, context, **workload):
    return peak_bytes(trace_footprint(skeleton(name), Workload(context_length=context, attention=how, **workload)))


@pytest.mark.parametrize("name", ["llama", *slow("bert", "gpt-oss", "t5", "phi3", "gpt_neox", "qwen3-moe", "mistral")])
def test_eager_is_predicted_for_eager(name):
    assert -0.02 <= metered.error(name, Workload(context_length=512, new_tokens=2, attention="eager")) <= 0.02


@pytest.mark.parametrize("name", ["bert", *slow("llama", "gemma3")])
def test_sdpa_is_predicted_for_sdpa(name):
    assert -0.02 <= metered.error(name, Workload(context_length=512, new_tokens=2, attention="sdpa")) <= 0.02


@pytest.mark.parametrize(
    ("name", "how", "context"),
    [
        ("tiny-llama", "flash_attention_2", 2048),
        *slow(
            ("llama-3.1-8b", "flash_attention_2", 4096),
            ("llama-3.1-8b", "flash_attention_3", 4096),
            ("llama-3.1-8b", "kernels-community/flash-attn3", 4096),
        ),
    ],
)
def test_flash_attention_keeps_no_scores(name, how, context):
    short, long = (peak(name, how, tokens) for tokens in (context, 2 * context))
    assert long < 2.05 * short
    assert peak(name, "eager", context) > 5 * short


@pytest.mark.parametrize("name", ["tiny-llama", *slow("llama-3.1-8b")])
def test_flash_attention_holds_what_torchs_own_does(name):
    """On CUDA, sdpa without a mask is the same kernel."""
    assert peak(name, "flash_attention_2", 4096) == pytest.approx(peak(name, "sdpa", 4096), rel=0.01)


@pytest.mark.parametrize(
    ("name", "a_token"), [("tiny-llama", 2 * 4 * 32 * 2 * 8), *slow(("llama-3.1-8b", 2 * 8 * 128 * 2 * 32))]
)
def test_flex_attention_is_traced(name, a_token):
    flex = trace_footprint(skeleton(name), Workload(context_length=4096, attention="flex_attention"))
    assert state_bytes(flex) == 4096 * a_token
    assert peak_bytes(flex) == pytest.approx(peak(name, "sdpa", 4096), rel=0.02)


def test_a_class_that_says_nothing_has_eager_attention():
    assert attention.of_class(type("Nothing", (), {})) == ("eager",)


@pytest.mark.parametrize("name", ["gpt-oss", *slow("gpt-oss-120b")])
def test_gpt_oss_attends_eagerly_unless_told(name):
    tree = skeleton(name).tree
    assert tree.attention == "eager"
    assert "sdpa" not in tree.attentions
    assert attention.chosen("flash_attention_2", tree.attentions, "") == "kernels-community/vllm-flash-attn3"
    assert peak(name, "kernels-community/vllm-flash-attn3", 4096) < peak(name, None, 4096) / 5


def test_tables_of_transformers_are_as_they_were_after_a_trace():
    from transformers import modeling_flash_attention_utils as flash
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS as MASKS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as FUNCTIONS

    before = dict(FUNCTIONS), dict(MASKS), flash.lazy_import_flash_attention
    for how in ("someone/a-kernel", "flex_attention"):
        trace_footprint(skeleton("tiny-llama"), Workload(context_length=64, attention=how))
    assert (dict(FUNCTIONS), dict(MASKS), flash.lazy_import_flash_attention) == before


@pytest.mark.parametrize(
    ("asked", "has", "found"),
    [
        ("sdpa", ("eager", "sdpa"), "sdpa"),
        ("a/b", ("eager", "flash_attention_2"), "a/b"),
        ("flash_attention_3", ("eager", "a/b", "flash_attention_4"), "a/b"),
        ("sdpa", ("eager",), None),
        ("a/b", ("eager",), None),
        ("flash_attention_2", ("eager", "sdpa"), None),
    ],
)
def test_what_a_class_is_run_with(asked, has, found):
    if found is not None:
        assert attention.chosen(asked, has, "Model") == found
        return
    with pytest.raises(UsageError, match=f"--attn-implementation {asked}: Model has none, it has eager"):
        attention.chosen(asked, has, "Model")


@pytest.mark.parametrize("name", ["", "Eager", "flash", "a/b/c", "/b", "a/", "a b/c", "paged|eager", "é/x", "a/b\n"])
def test_what_is_no_name(name):
    with pytest.raises(UsageError, match="is not one of sdpa, eager"):
        attention.checked(name, "--attn-implementation")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("sdpa", "sdpa", True),
        ("flash_attention_2", "kernels-community/flash-attn2", True),
        ("sdpa", "eager", False),
        ("flash_attention_2", "flash_attention_3", False),
        ("flash_attention_2", "sdpa", False),
    ],
)
def test_what_is_the_same_attention(one, other, same):
    assert attention.same(one, other) is attention.same(other, one) is same
