"""What a layer keeps, added up by hand from llama.cpp's rules."""

import gguf
import pytest

from devctl.models.gguf import state
from devctl.models.gguf.files import GgufModel
from devctl.models.gguf.state import CACHE_TYPES, LayerState, States, padded, states_of
from devctl.models.gguf.types import TYPES
from tests import gguf_files as files

F16, Q8_0 = TYPES[1], TYPES[8]


def model(architecture, keys, tmp_path):
    named = {f"{architecture}.{name}": tuple(v) if isinstance(v, list) else v for name, v in keys.items()}
    return GgufModel(name=str(tmp_path / "x.gguf"), architecture=architecture, metadata=named, tensors=())


@pytest.fixture
def states(tmp_path):
    def found(architecture, keys):
        return states_of(model(architecture, keys, tmp_path), keys["block_count"])

    return found


def kept(found, tokens, batch=1, kept_in=F16):
    return [layer.nbytes(tokens, batch, kept_in) for layer in found.layers]


def test_keys_and_values_of_all_heads_are_kept(states):
    found = states("llama", files.LLAMA)  # 2 heads of 256 / 8 numbers, twice, of 2 bytes
    assert kept(found, 4096) == [2 * 32 * 2 * 2 * 4096] * 4
    assert not found.notes


def test_a_cache_has_whole_cells(states):
    found = states("llama", files.LLAMA)
    assert (padded(1), padded(256), padded(257)) == (256, 256, 512)
    assert kept(found, 257, batch=3) == [3 * 512 * 256] * 4


def test_a_cache_of_eight_bits_has_scales(states):
    assert kept(states("llama", files.LLAMA), 256, kept_in=Q8_0) == [256 * 2 * (64 // 32 * 34)] * 4
    assert kept(states("llama", files.LLAMA), 256, kept_in=CACHE_TYPES["float32"]) == [256 * 2 * 64 * 4] * 4


def test_heads_are_of_the_length_that_is_said(states):
    found = states("qwen3moe", files.MOE | {"attention.value_length": 32})
    assert found.layers == (LayerState(keys=2 * 64, values=2 * 32),) * 4


def test_without_a_number_of_its_own_keys_have_as_many_heads_as_queries(states):
    keys = {name: value for name, value in files.LLAMA.items() if name != "attention.head_count_kv"}
    assert states("gpt2", keys).layers == (LayerState(keys=256, values=256),) * 4


def test_heads_may_be_told_layer_by_layer(states):
    found = states("deci", files.LLAMA | {"attention.head_count_kv": [4, 0, 2, 1]})
    assert [layer.keys for layer in found.layers] == [128, 0, 64, 32]
    assert "flash attention" in found.notes[0]


def test_a_window_holds_itself_and_a_batch(states):
    """Six of seven layers of Gemma 3: min(whole, 512 + 512), of whole cells."""
    found = states("gemma3", files.GEMMA3)
    assert [layer.window for layer in found.layers] == [512] * 5 + [None, 512]
    row = 2 * 2 * 64 * 2
    assert kept(found, 8192) == [row * 1024] * 5 + [row * 8192, row * 1024]
    assert kept(found, 300) == [row * 512] * 7
    assert kept(found, 8192, batch=2) == [2 * size for size in kept(found, 8192)]


@pytest.mark.parametrize(
    ("architecture", "keys", "windows"),
    [
        ("gemma2", {}, [4096, None, 4096, None]),
        ("gemma2", {"attention.sliding_window": 1024}, [1024, None, 1024, None]),
        ("gpt-oss", {"attention.sliding_window": 128}, [128, None, 128, None]),
        ("cohere2", {"attention.sliding_window": 64}, [64, 64, 64, None]),
        ("llama4", {}, [8192, 8192, 8192, None]),
        ("llama4", {"attention.sliding_window": 0}, [None] * 4),
        ("gemma3", {}, [None] * 4),
        ("gemma3", {"attention.sliding_window": 64, "attention.sliding_window_pattern": 2}, [64, None, 64, None]),
        ("qwen2", {"attention.sliding_window": 64}, [None] * 4),
    ],
)
def test_which_layers_have_a_window(states, architecture, keys, windows):
    found = states(architecture, files.LLAMA | keys)
    assert [layer.window for layer in found.layers] == windows
    assert bool(found.notes) == (architecture == "qwen2")


def test_gemma_4_says_it_of_each_layer(states):
    keys = files.LLAMA | {
        "attention.key_length": 64,
        "attention.value_length": 64,
        "attention.key_length_swa": 32,
        "attention.value_length_swa": 32,
        "attention.sliding_window": 128,
        "attention.sliding_window_pattern": [True, False, True, False],
        "attention.shared_kv_layers": 1,
    }
    narrow, wide = LayerState(keys=64, values=64, window=128), LayerState(keys=128, values=128)
    assert states("gemma4", keys).layers == (narrow, wide, narrow, LayerState())


def test_gemma_3n_shares_keys_behind_its_twentieth_layer(states):
    found = states("gemma3n", files.LLAMA | {"block_count": 25, "attention.sliding_window": 64})
    assert [bool(layer.keys) for layer in found.layers] == [True] * 20 + [False] * 5
    assert found.layers[4].window is None
    assert found.layers[5].window == 64


def test_latent_attention_keeps_one_vector_a_token(states):
    assert states("deepseek2", files.DEEPSEEK2).layers == (LayerState(keys=160, values=0),) * 4


def test_a_file_of_before_latent_attention_keeps_every_head(states):
    keys = {name: value for name, value in files.DEEPSEEK2.items() if not name.endswith("_mla")}
    assert (
        states("deepseek2", keys | {"attention.head_count_kv": 8}).layers
        == (LayerState(keys=8 * 160, values=8 * 128),) * 4
    )


SSM = {"ssm.conv_kernel": 4, "ssm.inner_size": 512, "ssm.state_size": 16, "ssm.group_count": 2}
STATE = 4 * (3 * (512 + 2 * 2 * 16) + 16 * 512)


def test_a_state_of_one_size_is_in_float32(states):
    found = states("mamba2", {"block_count": 3, **SSM})
    assert kept(found, 256) == kept(found, 100_000, kept_in=Q8_0) == [STATE] * 3
    assert kept(found, 256, batch=5) == [5 * STATE] * 3
    without_groups = {name: value for name, value in SSM.items() if name != "ssm.group_count"}
    assert kept(states("mamba", {"block_count": 1, **without_groups}), 1) == [4 * (3 * 512 + 16 * 512)]


def test_layers_may_keep_one_or_the_other_or_both(states):
    attends = LayerState(keys=64, values=64)
    both = states("falcon-h1", files.LLAMA | SSM)
    assert both.layers == (LayerState(keys=64, values=64, fixed=STATE),) * 4
    jamba = states("jamba", files.LLAMA | SSM | {"attention.head_count_kv": [0, 2, 0, 0]})
    assert jamba.layers == (LayerState(fixed=STATE), attends, LayerState(fixed=STATE), LayerState(fixed=STATE))
    qwen = states("qwen3next", files.LLAMA | SSM | {"full_attention_interval": 2})
    assert qwen.layers == (LayerState(fixed=STATE), attends) * 2
    lfm = states("lfm2", files.LLAMA | {"shortconv.l_cache": 3, "attention.head_count_kv": [2, 0, 2, 0]})
    assert lfm.layers == (attends, LayerState(fixed=4 * 256 * 2)) * 2


@pytest.mark.parametrize(
    ("architecture", "changes", "why"),
    [
        ("rwkv7", {}, "how llama.cpp's rwkv7 keeps its state is not known here"),
        ("x" * 200, {}, "is not known here"),
        ("llama", {"attention.head_count": None}, "its header has no attention.head_count"),
        ("llama", {"embedding_length": None}, "its header has no embedding_length"),
        ("llama", {"embedding_length": "256"}, "its embedding_length is no size"),
        ("llama", {"attention.head_count_kv": -1}, "its attention.head_count_kv is no size"),
        ("llama", {"attention.head_count_kv": True}, "its attention.head_count_kv is no size"),
        ("llama", {"attention.key_length": 2**62}, "its attention.key_length is no size"),
        ("llama", {"attention.head_count": 0, "attention.head_count_kv": None}, "no layer keeps keys"),
        ("gemma3", {"attention.head_count_kv": [0] * 4}, "no layer keeps keys"),
        ("qwen3", {"attention.key_length": 0}, "no layer keeps keys"),
        ("llama", {"attention.head_count_kv": [2, 2]}, "has 2 numbers, and it has 4 layers"),
        (
            "gemma3",
            {"attention.sliding_window": 9, "attention.sliding_window_pattern": 0},
            "sliding_window_pattern is 0",
        ),
        ("gemma4", {"attention.sliding_window_pattern": [True]}, "is not said layer by layer"),
        ("gemma4", {"attention.sliding_window_pattern": [True] * 4}, "its header has no attention.sliding_window"),
        ("mamba2", {}, "its header has no ssm.conv_kernel"),
        ("qwen35", SSM | {"full_attention_interval": 0}, "which of its layers attend is not said"),
    ],
)
def test_what_is_not_known_is_not_guessed(states, architecture, changes, why):
    keys = {name: value for name, value in (files.LLAMA | changes).items() if value is not None}
    assert why in states(architecture, keys)


def test_layers_that_predict_ahead_are_counted_and_told(states):
    found = states("glm4moe", files.MOE | {"nextn_predict_layers": 1})
    assert all(layer.keys for layer in found.layers)
    assert "predict tokens ahead" in found.notes[0]


def test_a_cache_in_blocks_needs_whole_ones():
    odd = States(layers=(LayerState(keys=64, values=64), LayerState(keys=48, values=64)))
    assert "blocks of 32, and layer 1 keeps 48 numbers" in odd.refusal(Q8_0)
    assert odd.refusal(F16) is None


def test_every_architecture_of_the_rules_is_one():
    rules = (state._ATTENTION, state._PERIODS, state._WINDOWS, state._BY_LAYER, state._RECURRENT, state._BOTH)
    named = set().union(*rules, state._WITHOUT_HEADS, state._INTERVAL)
    assert named <= set(gguf.MODEL_ARCH_NAMES.values())
