"""vLLM's cache and memory, in sums that a reader can do, and against what it logged."""

from dataclasses import replace

import pytest

from devctl.models.tree import Module, ModuleTree, Tensor, TensorKind
from devctl.placement.engines import vllm
from devctl.placement.engines.asking import BEFORE, TOWERS, Asked
from devctl.placement.engines.records import Serving
from devctl.placement.engines.text_model import Kept, TextModel, text_model
from devctl.placement.engines.vllm_cache import cache_of
from devctl.placement.engines.vllm_weights import TIED, weights_of_rank
from devctl.planning.engine import _part_of
from tests.benchmarks.engine import POOL, TOO_LARGE, WEIGHTS, predict
from tests.benchmarks.engine_runs import RUNS
from tests.marks import one_in
from tests.trees import tree

GIB, MIB = 2**30, 2**20
FULL, WINDOW = Kept("full"), Kept("sliding", 32)


def model(*layers, **own):
    """A decoder with two KV heads of eight numbers, in two bytes each: 64 bytes of a token and layer."""
    given = {
        "item": 2,
        "layers": layers,
        "hidden": 32,
        "intermediate": 64,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 8,
        "vocabulary": 128,
        "latent": 0,
        "beside_latent": 0,
        "unpacked": 0,
        "restored": 0,
        "absorbed": 0,
        "recurrent": 0,
        "experts": 0,
        "experts_per_token": 0,
        "expert_intermediate": 0,
        "packed_experts": False,
        "block": 1,
        "rope_bytes": 0,
        "longest": 0,
        "seen": None,
    }
    return TextModel(**given | own)


def test_layers_that_keep_alike_are_one_group_and_a_page_is_of_16_tokens():
    cache = cache_of(model(FULL, FULL, FULL), 1, None)
    assert [group.layers for group in cache.groups] == [(0, 1, 2)]
    assert (cache.block_size, cache.page, cache.block(range(3))) == (16, 1024, 3 * 1024)
    assert cache.per_token(range(3)) == 3 * 64
    assert cache.tokens(10) == 160
    assert cache.blocks_of(17, 8192) == 2


def test_a_rank_has_at_least_one_head_of_keys():
    assert [cache_of(model(FULL), ranks, None).page for ranks in (1, 2, 4)] == [1024, 512, 512]
    assert cache_of(model(FULL), 1, 1).page == 512, "in eight bits"


def test_windows_and_whole_contexts_are_groups_of_as_many_layers():
    layers = (WINDOW, WINDOW, FULL) * 2
    cache = cache_of(model(*layers), 1, None)
    assert [group.layers for group in cache.groups] == [(0, 3), (1, 4), (2, 5)]
    # 31 tokens of a window and 64 that are read at once are 95, on 6 pages and one more; 160 are 10
    assert cache.blocks_of(160, 64) == 7 + 7 + 10
    assert cache.tokens(31) == 160, "of each of three groups, ten pages"


def test_a_kind_with_few_more_layers_is_one_group_that_is_filled_up():
    cache = cache_of(model(*(WINDOW,) * 4, *(FULL,) * 3), 1, None)
    assert [len(group.layers) for group in cache.groups] == [4, 3]
    assert cache.per_token(range(7)) == 2 * 4 * 64, "8 layers of which there are 7"


def test_a_stage_takes_pages_for_its_own_layers():
    cache = cache_of(model(*(FULL,) * 5), 1, None)
    assert [cache.block(range(3)), cache.block(range(3, 5))] == [3 * 1024, 2 * 1024]


def test_latents_are_whole_on_every_rank():
    one, eight = (cache_of(model(FULL, latent=576, beside_latent=132), ranks, None) for ranks in (1, 8))
    assert one == eight
    assert one.per_token(range(1)) == 576 * 2 + 132


def test_latents_of_sparse_attention_in_8_bits_have_scales():
    sparse = model(FULL, latent=576, beside_latent=132)
    assert cache_of(sparse, 8, 1).page == 64 * (656 + 132)
    assert cache_of(sparse, 8, None).page == 64 * (576 * 2 + 132)
    assert cache_of(replace(sparse, beside_latent=0), 8, 1).page == 64 * 576


def test_a_page_of_the_pool_is_given_to_no_sequence():
    """So many pages as a sequence takes are one too few: it would wait for ever."""
    serving = Serving(utilisation=0.9, batched_tokens=64, sequences=4)
    asked = Asked(
        text=model(FULL),
        container="layers",
        weights={},
        by_layer=(0, 0),
        serving=serving,
        ranks=1,
        kept_in=None,
        context=160,
        batch=1,
    )
    assert asked.concurrency(10, 160) == 1
    assert [asked.whole(blocks, 160) for blocks in (0, 10, 11, 20, 21)] == [0, 0, 1, 1, 2]
    assert asked.longest(10) == 144


def test_a_page_is_as_large_as_the_state_of_a_recurrent_layer():
    cache = cache_of(model(Kept("recurrent"), FULL, recurrent=2500), 1, None)
    assert (cache.block_size, cache.page) == (48, 3072), "three times 16 tokens of 64 bytes are above 2500"
    assert cache.blocks_of(480, 64) == 2 + 10


def test_a_last_stage_chooses_tokens_and_another_does_not():
    wide = model(FULL, vocabulary=128_000)
    last, other = vllm.Ranks(stages=2, stage=1), vllm.Ranks(stages=2)
    logits = 1024 * 128_000 * (2 + 4 + 4 + 4)
    assert logits < vllm.activations(wide, last, 8192, 1024, 8192) < 1.1 * logits
    assert vllm.activations(wide, other, 8192, 1024, 8192) < logits / 10


def test_fewer_sequences_need_less_to_choose_from():
    wide = model(FULL, vocabulary=128_000)
    assert (
        vllm.activations(wide, vllm.Ranks(), 8192, 64, 8192)
        < vllm.activations(wide, vllm.Ranks(), 8192, 1024, 8192) / 2
    )


def test_boards_of_70_gib_read_more_at_once_but_for_an_a100():
    assert vllm.batch_defaults(80 * GIB, "H100 SXM") == (8192, 1024)
    assert vllm.batch_defaults(80 * GIB, "NVIDIA A100-SXM4-80GB") == (2048, 256)
    assert vllm.batch_defaults(24 * GIB, "RTX 4090") == (2048, 256)


def test_weights_are_taken_from_the_allocator_in_steps_of_two_mebibytes():
    spec = {"layers": {"0:Layer": {"q_proj": {"weight": 11 * MIB + 1}, "o_proj": {"weight": 10 * MIB + MIB // 2}}}}
    sizes = weights_of_rank(tree(spec), model(FULL), 1, lambda name: "all")
    # a step ends less than a mebibyte behind the first, and more behind the second, whose rest is left to others
    assert sizes == {"all": 12 * MIB + 10 * MIB + MIB // 2}


def test_queries_keys_and_values_are_one_tensor():
    spec = {"q_proj": {"weight": 6 * MIB}, "k_proj": {"weight": 3 * MIB}, "v_proj": {"weight": 2 * MIB + MIB // 2}}
    assert weights_of_rank(tree(spec), model(FULL), 1, lambda name: "all") == {"all": 12 * MIB}, "11.5 in a step of 12"


def test_a_head_that_is_tied_is_a_part_of_its_own():
    spec = {"embed_tokens": {"weight": 512}, "lm_head": {"weight": 512}}
    tied = tree(spec, ties=[("lm_head.weight", "embed_tokens.weight")])
    assert set(weights_of_rank(tied, model(FULL), 1, lambda name: "all")) == {"all", TIED}


CHOSEN = {
    "google/gemma-3-4b-it": {},
    "moonshotai/Kimi-Dev-72B": {"tp": 2},
    "meta-llama/Llama-3.1-8B-Instruct": {"pp": 4},
    "Qwen/Qwen3-30B-A3B": {},
    "RedHatAI/Meta-Llama-3.1-8B-Instruct-quantized.w4a16": {},
}


@pytest.mark.parametrize("name", one_in(3, CHOSEN))
def test_what_was_logged_is_what_is_predicted(name):
    run = next(each for each in RUNS if each.model == name and CHOSEN[name].items() <= vars_of(each).items())
    row = predict(run)
    assert abs(row.weights_off) <= WEIGHTS
    assert -POOL <= row.pool_off <= TOO_LARGE
    assert row.gives_a_token_its_bytes
    assert row.fits, "it ran"
    assert row.tokens == pytest.approx(run.tokens, rel=0.01)
    assert row.concurrency == pytest.approx(run.concurrency, rel=0.01)


@pytest.mark.parametrize(
    ("rope", "longest", "rows"),
    [
        (None, 4096, 4096),
        ({"rope_type": "llama3", "factor": 8.0}, 4096, 4096),
        ({"type": "linear", "factor": 4.0}, 16_384, 16_384),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}, 8192, 8192),
        ({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 1024}, 4096, 2048),
        ({"full_attention": {"rope_type": "linear", "factor": 2.0}, "sliding_attention": {}}, 8192, 8192 + 4096),
        ("broken", 4096, 4096),
        ({"rope_type": "linear", "factor": "many"}, 4096, 4096),
    ],
)
def test_a_table_of_rotary_embeddings_is_as_long_as_what_it_is_scaled_to(rope, longest, rows):
    found = text_model({**CONFIG, "max_position_embeddings": 4096, "rope_scaling": rope}, attending(16))
    assert (found.longest, found.rope_bytes) == (longest, rows * 8 * 2)


def test_what_ran_out_of_memory_is_refused_and_what_ran_is_not():
    """With 0.95 of the board its cache was in place, and then its graphs were not."""
    run = next(each for each in RUNS if each.model == "openai/gpt-oss-20b")
    assert predict(run).fits
    assert not predict(replace(run, utilisation=0.95)).fits


def test_latents_are_kept_with_what_unpacks_them_where_that_is_quantised():
    config = {
        **CONFIG,
        "model_type": "deepseek_v3",
        "kv_lora_rank": 512,
        "qk_rope_head_dim": 64,
        "qk_nope_head_dim": 128,
        "v_head_dim": 96,
    }
    assert text_model(config, attending(16)).absorbed == 0
    found = text_model(config, replace(attending(16), quantisation="fp8"))
    assert (found.latent, found.unpacked) == (576, 2 * (128 + 64 + 96))
    assert found.absorbed == 4 * (128 + 96) * 512 * 2


def test_room_is_made_for_as_many_latents_as_are_ever_unpacked_at_once():
    one = vllm.Ranks()
    wide = model(FULL, heads=16, hidden=64, latent=576, unpacked=2 * 320, restored=256)
    few = 16 * (256 * 8 * 1024 + 320 * 512) * 2
    assert vllm.activations(wide, one, 512, 8, 1024) - few == pytest.approx(vllm._FIXED, abs=2**20)
    shared = vllm.activations(wide, vllm.Ranks(tensor=4), 512, 8, 1024)
    assert shared - few // 4 == pytest.approx(vllm._FIXED, abs=2**20), "each rank has its heads"
    most = 16 * (256 * 64 * 1024 + 320 * 512) * 2
    assert vllm.activations(wide, one, 512, 8, 10**6) - most == pytest.approx(vllm._FIXED, abs=2**20)


def test_experts_that_are_quantised_in_blocks_have_their_tokens_filled_up():
    whole = model(FULL, hidden=64, experts=100, experts_per_token=2, expert_intermediate=32)
    needed = [
        vllm.activations(replace(whole, block=block), ranks, 512, 8, 1024)
        for block, ranks in ((1, vllm.Ranks()), (128, vllm.Ranks()), (128, vllm.Ranks(tensor=4, experts_whole=True)))
    ]
    assert needed[1] - needed[0] == 100 * 127 * (64 + 64) * 2
    assert needed[2] - needed[0] == pytest.approx(25 * 127 * (64 + 64) * 2, abs=2**18), "a rank has its experts"


@pytest.mark.parametrize(
    ("own", "found"),
    [
        ({"multi_query": True}, 1),
        ({"multi_query": True, "new_decoder_architecture": True, "num_kv_heads": 2}, 2),
        ({"multi_query": False, "num_key_value_heads": None}, 4),
    ],
)
def test_older_configs_say_otherwise_how_many_heads_of_keys_there_are(own, found):
    assert text_model({**CONFIG, **own}, attending(found * 8)).kv_heads == found


def test_layers_that_attend_to_all_may_be_told_by_their_interval():
    linear = dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads", "linear_conv_kernel_dim"), 2)
    linear |= dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 8)
    config = {**CONFIG, **linear, "num_hidden_layers": 8, "full_attention_interval": 4}
    assert [each.kind for each in text_model(config, attending(16)).layers] == (["recurrent"] * 3 + ["full"]) * 2


def test_sparse_attention_keeps_a_workspace_for_the_longest_sequences():
    dense = model(FULL, latent=576, restored=256)
    sparse = replace(dense, beside_latent=132)
    more = vllm.activations(sparse, vllm.Ranks(), 8192, 64, 131072) - vllm.activations(
        dense, vllm.Ranks(), 8192, 64, 131072
    )
    assert more == 5 * 131072 * 576 * 2 + 512 * 2**20


SEES = {
    "patch_size": 14,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}


@pytest.mark.parametrize(
    ("own", "context", "tokens"),
    [
        ({"model_type": "qwen2_5_vl", "vision_config": SEES}, 8192, 16384),
        ({"model_type": "qwen2_5_vl", "vision_config": SEES}, 32768, 2 * 16384),
        ({"model_type": "qwen2_5_vl", "vision_config": SEES}, 128000, 7 * 16384),
        ({"model_type": "qwen3_vl", "vision_config": SEES}, 128000, 16384),
        ({"model_type": "mistral3", "vision_config": {**SEES, "image_size": 1540}}, 8192, 8192),
        ({"model_type": "llama4", "vision_config": {"image_size": 336, "patch_size": 14}}, 8192, 17 * 576),
        (
            {
                "model_type": "llava_next",
                "vision_config": {"image_size": 336, "patch_size": 14},
                "image_grid_pinpoints": [[336, 672], [1008, 1344]],
            },
            8192,
            max(8192, 13 * 576),
        ),
        (
            {
                "model_type": "gemma3",
                "mm_tokens_per_image": 256,
                "vision_config": {"image_size": 896, "patch_size": 14},
            },
            8192,
            8192,
        ),
    ],
)
def test_what_vllm_has_a_model_see_at_its_start_is_a_step_or_the_largest_image_or_video(own, context, tokens):
    found = text_model({**CONFIG, **own}, attending(16))
    assert not isinstance(found, str), found
    assert found.seen.most(8192, context) == tokens


@pytest.mark.parametrize(
    ("own", "patches"),
    [
        ({"downsample_ratio": 0.5, "vision_config": {"image_size": [448, 448]}}, 4),
        ({"scale_factor": 4, "vision_config": {"image_size": 512, "patch_size": 16}}, 16),
        ({"vision_config": {"image_size": 336, "pixel_shuffle_ratio": 0.5}}, 4),
        ({"spatial_merge_size": 2, "vision_config": {"image_size": 1540}}, 4),
        ({"mm_tokens_per_image": 256, "vision_config": {"image_size": 896}}, 16),
    ],
)
def test_how_many_patches_a_token_has_is_told_by_several_words(own, patches):
    assert text_model({**CONFIG, **own}, attending(16)).seen.patches == patches


def test_a_long_video_takes_from_the_cache():
    found = text_model({**CONFIG, "model_type": "qwen2_5_vl", "vision_config": SEES}, attending(16))
    short, long = (vllm.activations(found, vllm.Ranks(), 8192, 1024, each) for each in (8192, 128000))
    assert long - short > 6 * 16384 * 4 * 11 * 1280 * 2, "of each patch what attention holds"


@pytest.mark.parametrize(
    ("own", "why"),
    [
        ({"model_type": "glm9v", "vision_config": {"patch_size": 14}}, "does not say how large an image is"),
        ({"audio_config": {"hidden_size": 8}}, "its config has audio_config"),
        ({"encoder_config": {"hidden_size": 8}}, "its config has encoder_config"),
    ],
)
def test_towers_that_are_not_known_are_refused(own, why):
    found = text_model({**CONFIG, **own}, attending(16))
    assert isinstance(found, str)
    assert "how much the towers of M take when vLLM starts" in found
    assert why in found


def test_a_tower_that_the_config_does_not_tell_of_is_refused():
    tower = replace(attending(16).index.tensors[0], name="vision.a.weight")
    whole = replace(attending(16), root=replace(attending(16).root, parameters=(tower,)))
    assert "its config has no vision_config, and it has vision.a.weight" in text_model(CONFIG, whole)


def test_a_tower_with_gates_holds_a_third_of_its_widest_layer_more():
    gate = Tensor(
        name="vision_tower.layers.0.mlp.gate_proj.weight",
        kind=TensorKind.PARAMETER,
        nbytes=2,
        shape=(1, 1),
        dtype="bfloat16",
    )
    config = {**CONFIG, "vision_config": {"image_size": 28, "hidden_size": 8, "intermediate_size": 100}}
    whole = replace(attending(16), root=replace(attending(16).root, parameters=(gate,)))
    assert text_model(config, attending(16)).seen.within == 2 * 100 + 4 * 8
    assert text_model(config, whole).seen.within == 3 * 100 + 4 * 8


def test_what_a_model_sees_with_is_on_every_stage():
    names = ("visual.blocks.0.attn.qkv.weight", "multi_modal_projector.linear_1.weight")
    assert [_part_of(name, "language_model.layers.") for name in names] == [TOWERS, TOWERS]
    assert _part_of("language_model.embed_tokens.weight", "language_model.layers.") == BEFORE
    assert _part_of("language_model.layers.3.image.weight", "language_model.layers.") == "3"


@pytest.mark.slow
def test_all_that_was_logged_is_predicted_within_the_bounds():
    from tests.benchmarks.engine import means

    rows = [predict(run) for run in RUNS]
    weights, pool, _, largest = means(rows)
    assert all(row.fits for row in rows), "they ran"
    assert weights <= WEIGHTS
    assert pool <= POOL
    assert largest <= TOO_LARGE


def vars_of(run):
    return {"tp": run.tp, "pp": run.pp}


CONFIG = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 1,
    "intermediate_size": 64,
    "vocab_size": 128,
}


def attending(rows):
    """A model with one weight, which makes keys of as many rows."""
    weight = Tensor(name="a.k_proj.weight", kind=TensorKind.PARAMETER, nbytes=64, shape=(rows, 32), dtype="bfloat16")
    keys = Module(name="a.k_proj", class_name="Linear", parameters=(weight,))
    within = Module(name="a", class_name="Attention", children=(keys,))
    return ModuleTree(root=Module(name="", class_name="M", children=(within,)), class_name="M", dtype="bfloat16")


def test_a_config_is_held_against_the_weights():
    assert text_model(CONFIG, attending(16)).head_dim == 8
    told = text_model({**CONFIG, "head_dim": 16}, attending(16))
    assert isinstance(told, str)
    assert "is not of 32 rows" in told


@pytest.mark.parametrize(
    ("own", "why"),
    [
        ({"is_encoder_decoder": True}, "an encoder and a decoder"),
        ({"layer_types": ["hyena"]}, "its layers are hyena"),
        ({"layer_types": ["full_attention"] * 2}, "fewer or more"),
        ({"layer_types": ["sliding_attention"]}, "how long the windows are"),
        ({"hybrid_layer_pattern": [1]}, "hybrid_layer_pattern"),
        ({"kv_lora_rank": 8}, "latents"),
        ({"vocab_size": None}, "no vocab_size"),
        ({"vocab_size": "many"}, "no vocab_size"),
    ],
)
def test_what_is_not_known_is_refused_with_its_reason(own, why):
    found = text_model({**CONFIG, **own}, attending(16))
    assert isinstance(found, str)
    assert why in found
