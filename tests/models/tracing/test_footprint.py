"""What a model holds beside its weights: against arithmetic that a reader can redo."""

import functools
import tempfile
from dataclasses import replace

import pytest
import transformers

from devctl.errors import UntracedError
from devctl.loading.run.allocations import counted
from devctl.models.files.resolve import resolve
from devctl.models.footprint import (
    BlockFootprint,
    Footprint,
    Kernels,
    Workload,
    dump_footprint,
    parse_footprint,
    peak_beside_weights,
    state_bytes,
    state_bytes_per_token,
)
from devctl.models.skeleton import read_skeleton
from devctl.models.tracing.trace import trace_footprint, trace_prefill
from tests import small_models
from tests.benchmarks import memory
from tests.conftest import CONFIGS
from tests.marks import slow


@functools.cache
def skeleton(name):
    """A real model, or a small one of the same class."""
    if (CONFIGS / name).exists():
        return read_skeleton(resolve(str(CONFIGS / name)))
    return built(*small_models.MEASURED[name.removeprefix("small ")]())


@functools.cache
def trace(name, context_length, **workload):
    return trace_footprint(skeleton(name), Workload(context_length=context_length, **workload))


def built(model_class, config):
    config.architectures = [model_class.__name__]
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        return read_skeleton(resolve(folder), dtype="bfloat16")


def by_name(footprint):
    return {block.name: block for block in footprint.blocks}


# layers × 2 (keys, values) × heads of keys × size of a head × 2 bytes
@pytest.mark.parametrize(
    ("name", "per_token"),
    [
        ("llama-3.1-8b", 32 * 2 * 8 * 128 * 2),
        *slow(
            ("llama-3.1-70b", 80 * 2 * 8 * 128 * 2),
            ("llama-3.1-405b", 126 * 2 * 8 * 128 * 2),
            ("mixtral-8x7b", 32 * 2 * 8 * 128 * 2),
            # transformers keeps what multi-head latent attention compresses to: 512 for both and 64 of rotary keys
            ("deepseek-v3", 61 * (512 + 64) * 2),
        ),
    ],
)
def test_bytes_of_keys_and_values_a_token(name, per_token):
    states_grow_by(name, per_token, 131_072)


def test_bytes_of_latent_attention_a_token():
    """Of a small DeepSeek-V3: 64 for keys and values, and 16 of rotary keys."""
    states_grow_by("small deepseek-v3", 4 * (64 + 16) * 2, 2048)


def states_grow_by(name, per_token, context):
    footprint = trace(name, context, new_tokens=8)
    assert footprint.exact
    assert state_bytes_per_token(footprint) == per_token
    assert {block.name for block in footprint.blocks if block.state} == {
        f"model.layers.{i}" for i in range(skeleton(name).config.num_hidden_layers)
    }


A_TOKEN_OF_TINY = 8 * 2 * 4 * 32 * 2


@pytest.mark.parametrize("context", [1_000_000, *slow(10_000_000, 5)])
def test_keys_and_values_grow_with_the_context(context):
    assert state_bytes(trace("tiny-llama", context)) == context * A_TOKEN_OF_TINY


def test_a_batch_keeps_states_for_each_sequence():
    assert state_bytes(trace("tiny-llama", 4002, batch_size=2, kernels=Kernels.CPU)) == 2 * 4002 * A_TOKEN_OF_TINY


@pytest.mark.parametrize(
    ("name", "context", "window", "a_token"),
    [
        ("gemma2", 600, 256, 2 * 2 * 32 * 2),
        *slow(("gemma-2-27b", 20_000, 4096, 2 * 16 * 128 * 2), ("gemma-2-27b", 4096, 4096, 2 * 16 * 128 * 2)),
    ],
)
def test_a_sliding_window_keeps_no_more_than_its_tokens(name, context, window, a_token):
    blocks = by_name(trace(name, context, new_tokens=8))
    assert blocks["model.layers.1"].state == context * a_token
    assert blocks["model.layers.0"].state == min(context, window) * a_token
    # a slice of what prefill made keeps all of it, until the next step
    assert blocks["model.layers.0"].prompt_state == (context - 8) * a_token


@pytest.mark.parametrize(
    ("name", "context", "pairs", "a_token"),
    [*slow(("gpt-oss", 2048, 2, 2 * 2 * 32 * 2), ("gpt-oss-120b", 8192, 18, 2 * 8 * 64 * 2))],
)
def test_gpt_oss_alternates_windows_of_128_tokens(name, context, pairs, a_token):
    footprint = trace(name, context, new_tokens=8)
    assert state_bytes(footprint) == pairs * (context + 128) * a_token


def test_prefill_of_llama_is_what_its_code_has_alive_at_once():
    """While the gated product is made: three of the intermediate size, and four of the hidden size."""
    prompt = 4096
    block = by_name(trace("llama-3.1-8b", prompt + 1))["model.layers.5"]
    hidden, intermediate, rotary = 4096, 14_336, 2 * 128
    ids, mask, positions = 8, 8, 8
    # hidden: the embeddings, which the model's forward still names, the layer's input, the residual, the normed input
    alive = (3 * intermediate + 4 * hidden + rotary) * 2 + ids + mask + positions
    assert alive * prompt <= block.prefill <= alive * prompt * 1.001


def test_decode_of_llama_has_the_old_keys_beside_the_new():
    block = by_name(trace("llama-3.1-8b", 131_072, new_tokens=8))["model.layers.5"]
    keys = 131_072 * 8 * 128 * 2
    # the values' turn comes when the keys are replaced already
    assert keys <= block.decode <= keys * 1.03


@pytest.mark.parametrize(("name", "context", "heads"), [("gpt-oss", 2048, 8), *slow(("gpt-oss-120b", 8192, 64))])
def test_eager_attention_holds_its_scores(name, context, heads):
    """gpt-oss has sinks, which scaled_dot_product_attention does not know: heads × tokens² are real."""
    footprint, prompt = trace(name, context, new_tokens=8), context - 8
    assert by_name(footprint)["model.layers.0"].prefill > 2 * heads * prompt**2 * 2
    assert footprint.square >= heads * prompt * (prompt + 1) * 2, "each row is beside its sink"


@pytest.mark.parametrize("name", ["llama-3.1-8b", *slow("mixtral-8x7b")])
def test_flash_attention_holds_no_scores(name):
    heads, prompt = 32, 131_064
    assert by_name(trace(name, prompt + 8, new_tokens=8))["model.layers.0"].prefill < heads * prompt**2 * 2


def test_without_scores_nothing_grows_with_the_square_of_the_text():
    assert trace("llama-3.1-8b", 4097).square == 0
    cpu = trace("tiny-llama", 4002, batch_size=2, kernels=Kernels.CPU)
    assert cpu.square == trace("tiny-llama", 4002, kernels=Kernels.CPU).square


@pytest.mark.parametrize(
    ("name", "context"),
    [
        ("t5", 264),
        *slow(("gpt-oss", 2048), ("llama-3.1-8b", 513), ("gpt-oss-120b", 8192), ("gemma-2-27b", 513), ("t5-11b", 264)),
    ],
)
def test_a_prefill_alone_is_that_of_the_whole(name, context):
    whole = trace(name, context, new_tokens=8)
    alone = trace_prefill(skeleton(name), Workload(context_length=context, new_tokens=8))
    assert alone.square == whole.square
    assert not alone.exact
    prompts = {block.name: (block.prompt_state, block.prefill) for block in whole.blocks if block.prompt_state}
    assert prompts
    found = by_name(alone)
    for block, (state, prefill) in prompts.items():
        assert found[block].state == found[block].prompt_state == state
        assert found[block].prefill == prefill


@pytest.mark.parametrize("name", ["whisper", "bert"])
def test_a_prefill_alone_is_of_text_that_goes_on(name):
    with pytest.raises(UntracedError):
        trace_prefill(small_models.skeleton(name), Workload(context_length=32))


def test_logits_are_those_of_the_last_token_in_float32():
    assert trace("tiny-llama", 4002, batch_size=2, kernels=Kernels.CPU).output == 2 * 4096 * 4


def test_a_device_adds_up_states_and_takes_the_most_of_the_rest():
    first = BlockFootprint(name="a", prompt_state=10, state=20, prefill=100, decode=7)
    second = BlockFootprint(name="b", prompt_state=30, state=5, prefill=50, decode=9)
    # the state of the second does not exist yet when the first executes
    assert peak_beside_weights([first, second]) == 10 + 100
    assert peak_beside_weights([second, first]) == 30 + 10 + 100
    assert peak_beside_weights([second]) == 30 + 50
    assert peak_beside_weights([]) == 0
    last = BlockFootprint(name="c", prompt_state=0, state=100, prefill=0, decode=1)
    assert peak_beside_weights([first, last]) == 20 + 100 + 7


def test_a_block_that_executes_again_finds_all_states_of_its_device():
    embedding = BlockFootprint(name="embed", prefill=50, again=45)
    layer = BlockFootprint(name="layer", prompt_state=10, state=12, prefill=20, decode=1)
    assert peak_beside_weights([embedding]) == 50
    assert peak_beside_weights([embedding, layer]) == 45 + 10


def test_weights_that_are_fetched_are_there_while_their_block_executes():
    first = BlockFootprint(name="a", prompt_state=10, state=10, prefill=50)
    second = BlockFootprint(name="b", prefill=20, decode=30)
    assert peak_beside_weights([first, second], {"b": 25}) == 10 + 30 + 25
    assert peak_beside_weights([first, second], {"a": 5}) == 10 + 50 + 5


def test_what_the_next_layers_are_not_given_is_where_the_embeddings_are():
    """Llama's forward still names the embeddings while a later layer executes; only the first is given them."""
    prompt = 4096
    blocks = by_name(trace("llama-3.1-8b", prompt + 1))
    apart = {other: prefill for other, prefill, _ in blocks["model.layers.5"].apart}
    assert apart["model.embed_tokens"] == -prompt * 4096 * 2
    assert "model.rotary_emb" not in apart, "it is given to all"
    assert "model.embed_tokens" not in {other for other, *_ in blocks["model.layers.0"].apart}


@pytest.mark.parametrize(("name", "layer"), [("t5", 2), *slow(("t5-11b", 3))])
def test_a_decoder_is_given_what_its_encoder_said(name, layer):
    blocks = by_name(trace(name, 264, new_tokens=8))
    apart = {other: figures for other, *figures in blocks[f"decoder.block.{layer}"].apart}
    said = blocks["encoder.final_layer_norm"].state
    assert said > 0
    assert apart["encoder.final_layer_norm"] == [said, said]


def test_states_in_another_dtype_are_scaled():
    footprint = trace("tiny-llama", 4002, kernels=Kernels.CPU, kv_dtype="float8_e4m3fn")
    assert state_bytes(footprint) == 4002 * A_TOKEN_OF_TINY // 2
    assert not footprint.exact
    assert any("float8_e4m3fn" in note for note in footprint.notes)


def test_an_encoder_has_no_state():
    footprint = trace("bert-large", 512, new_tokens=0)
    assert state_bytes(footprint) == 0
    assert by_name(footprint)["bert.encoder.layer.3"].prefill > 0


def test_an_encoder_decoder_keeps_what_its_encoder_said():
    """Whisper: 1,500 positions of sound in each layer's cross-attention, and the encoder's output in float16."""
    blocks = by_name(trace("whisper-large-v3", 400, new_tokens=8))
    width, layers = 1280, 32
    cross, own = 2 * 1500 * width * 2, 2 * 400 * width * 2
    assert [blocks[f"model.decoder.layers.{i}"].state for i in range(layers)] == [cross + own] * layers
    assert sum(b.state for n, b in blocks.items() if n.startswith("model.encoder")) == 1500 * width * 2


@pytest.mark.slow
def test_an_image_is_prompt_and_needs_its_tower():
    config = transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(num_hidden_layers=4), vision_config=transformers.CLIPVisionConfig()
    )
    footprint = trace_footprint(built(transformers.LlavaForConditionalGeneration, config), Workload(context_length=512))
    assert footprint.exact, footprint.notes
    assert any("vision_tower" in block.name for block in footprint.blocks)


def test_a_state_that_is_made_for_all_blocks_at_once_is_where_the_embeddings_are():
    """RWKV: five tensors of batch × hidden × layers, of which the three that it adds up in are float32."""
    batch, hidden, layers = 3, 64, 4
    config = transformers.RwkvConfig(vocab_size=256, hidden_size=hidden, num_hidden_layers=layers)
    footprint = trace_footprint(
        built(transformers.RwkvForCausalLM, config), Workload(context_length=9, new_tokens=4, batch_size=batch)
    )
    kept = batch * hidden * layers * (2 * 2 + 3 * 4)
    assert footprint.exact
    assert {b.name: (b.prompt_state, b.state) for b in footprint.blocks if b.state} == {"rwkv.embeddings": (kept, kept)}


@pytest.mark.slow
def test_matrices_that_are_made_for_all_blocks_at_once_are_state():
    """xLSTM: a matrix, a vector and a number for each head; and how many tokens it has seen."""
    batch, layers, heads, qk, v = 2, 2, 4, 64 // 4, 128 // 4
    config = transformers.xLSTMConfig(vocab_size=256, hidden_size=128, num_hidden_layers=layers, num_heads=heads)
    footprint = trace_footprint(
        built(transformers.xLSTMForCausalLM, config), Workload(context_length=7, new_tokens=2, batch_size=batch)
    )
    assert footprint.exact
    assert state_bytes(footprint) == batch * layers * heads * (qk * v + qk + 1) * 2 + 8


@pytest.mark.slow
def test_a_loop_over_the_sequence_is_followed_at_its_ends():
    """Mamba without its kernel goes token by token; its state does not grow."""
    config = transformers.MambaConfig(hidden_size=64, num_hidden_layers=3)
    long = trace_footprint(built(transformers.MambaForCausalLM, config), Workload(context_length=20_000))
    short = trace_footprint(built(transformers.MambaForCausalLM, config), Workload(context_length=200))
    assert trace_footprint(built(transformers.MambaForCausalLM, config), Workload(context_length=50)).exact
    assert not long.exact
    assert "the first and the last were followed" in long.notes[0]
    assert state_bytes(long) == state_bytes(short)
    assert peak_beside_weights(long.blocks) == pytest.approx(100 * peak_beside_weights(short.blocks), rel=0.02)


@pytest.mark.parametrize("name", ["whisper", *slow("gpt-oss", "llama", "t5")])
def test_blocks_that_are_alike_need_not_run(name):
    skeleton = small_models.skeleton(name)
    workload = Workload(context_length=24, new_tokens=3)
    assert trace_footprint(skeleton, workload) == trace_footprint(skeleton, workload, alike=False)


def test_the_allocator_meets_the_requests_of_blocks_that_did_not_run():
    """Eight layers of which few run leave the same gaps as eight that run; and there are some."""
    config = transformers.LlamaConfig(hidden_size=256, intermediate_size=1024, num_hidden_layers=8, vocab_size=512)
    skeleton = built(transformers.LlamaForCausalLM, config)
    workload = Workload(context_length=3000, batch_size=8, new_tokens=3)
    found = trace_footprint(skeleton, workload)
    whole = trace_footprint(skeleton, workload, alike=False)
    # which storages are alive at the peak, and so how much they are rounded up by, may differ
    assert found.rounded + found.unallocated == whole.rounded + whole.unallocated
    assert found.unallocated > peak_beside_weights(found.blocks) // 20
    assert trace_footprint(skeleton, replace(workload, kernels=Kernels.CPU)).unallocated == 0


def test_a_step_leaves_gaps_to_the_next_where_beams_copy_the_cache():
    """The last step alone, on a device without a gap, would leave 26 MiB."""
    sizes = {"hidden_size": 1024, "intermediate_size": 1024, "num_attention_heads": 8, "vocab_size": 512}
    skeleton = built(transformers.LlamaForCausalLM, transformers.LlamaConfig(num_hidden_layers=3, **sizes))
    workload = Workload(context_length=40, batch_size=300, new_tokens=36, generation=(("num_beams", 4),))
    assert trace_footprint(skeleton, workload).unallocated > 60 << 20


def test_a_model_that_cannot_be_traced_says_why_in_a_line():
    with pytest.raises(UntracedError, match="SegGptModel can't be traced") as caught:
        trace_footprint(built(transformers.SegGptModel, transformers.SegGptConfig()), Workload(context_length=8))
    assert "\n" not in caught.value.message


# beside llama's, which is measured with its padding, eagerly and in chunks; the others are in the sweep
@pytest.mark.parametrize(("name", "workload"), [("bart", "a batch")])
def test_the_peak_is_what_the_allocator_gives_out(name, workload):
    within_bounds(memory.compare(name, workload))


def covered():
    """Each model with each workload, in one dtype and the other by turns: each has both."""
    for row, name in enumerate(small_models.MEASURED):
        for column, workload in enumerate(memory.WORKLOADS):
            yield name, workload, ("float32", "bfloat16")[(row + column) % 2]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "workload", "dtype"), tuple(covered()))
def test_every_peak_is_what_the_allocator_gives_out(name, workload, dtype):
    within_bounds(memory.compare(name, workload, dtype))


def within_bounds(found):
    assert found.peak[1] > 5 * 2**20
    assert -0.02 <= found.error <= 0.05, found
    # an encoder's output is state too, but not in the cache
    assert found.state[0] == pytest.approx(found.state[1], rel=0.2 if found.name in ("t5", "bart") else 0)


def test_json_round_trip():
    footprint = trace("tiny-llama", 4002, batch_size=2, kernels=Kernels.CPU)
    assert parse_footprint(dump_footprint(footprint)) == footprint


@pytest.mark.parametrize("text", ["{}", "[]", "null", '{"format": 0}', '{"format": 4, "workload": {}}', "{"])
def test_malformed_json(text):
    with pytest.raises(ValueError, match=r"format|footprint|Expecting"):
        parse_footprint(text)


@pytest.mark.parametrize(
    "values",
    [
        {"context_length": 0},
        {"context_length": 8, "new_tokens": 8},
        {"context_length": 8, "new_tokens": -1},
        {"context_length": 8, "batch_size": 0},
    ],
)
def test_a_workload_that_is_none(values):
    with pytest.raises(ValueError, match="not a workload"):
        Workload(**values)


def test_figures_that_are_none():
    good = dump_footprint(Footprint(workload=Workload(context_length=8), blocks=(BlockFootprint(name="a", state=3),)))
    assert parse_footprint(good).blocks[0].state == 3
    for bad in ('["a", 0, "x", 0, 0, 0, []]', '["a", 0, null, 0, 0, 0, []]', '["a", 0, 3, 0, 0, 0, [["b", 1, {}]]]'):
        with pytest.raises(ValueError, match=r"footprint|no number of a model"):
            parse_footprint(good.replace('["a",0,3,0,0,0,[]]', bad))


def test_weights_that_a_constructor_makes_in_memory():
    """``torch.Tensor(size)`` heeds no device that a model is built on."""
    assert trace_footprint(built(*small_models.MODALITIES["wav2vec2"]()), Workload(context_length=8)).blocks


def test_large_integers_are_not_computed():
    """T5's distances between all tokens follow from real positions: 8 bytes × tokens² would be real, too."""
    _, allocated = counted(lambda: trace_footprint(skeleton("t5"), Workload(context_length=5001)))
    assert allocated < 5000**2
