"""What generate is told, by a model's files or by whoever asks."""

import json

import pytest
from transformers.generation import configuration_utils

from devctl.errors import ModelError, UsageError
from devctl.models.decoding import checked, decoding, words
from devctl.models.files.resolve import generation_of, resolve
from tests.conftest import CONFIGS

CHAT = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "eos_token_id": [1, 2], "transformers_version": "5"}


def settings(decode, told):
    return dict(decoding(decode, told).settings)


@pytest.mark.parametrize(
    ("decode", "told", "found"),
    [
        ("config", {}, {}),
        ("config", CHAT, {"do_sample": True, "temperature": 0.6, "top_p": 0.9}),
        ("greedy", CHAT, {}),
        ("config", {"num_beams": 4, "temperature": 0.6}, {"num_beams": 4}),
        ("greedy", {"num_beams": 4, "num_return_sequences": 2}, {}),
        ("greedy", {"num_beams": "many"}, {}),
        ("sample", {"temperature": 0.6}, {"do_sample": True, "temperature": 0.6}),
        ("sample", {"num_beams": 4, "top_k": 50}, {"do_sample": True}),
        ("beam:4", CHAT, {"num_beams": 4}),
        ("config", {"cache_implementation": "hybrid", "use_cache": True}, {}),
        ("config", {"cache_implementation": "dynamic"}, {}),
        ("greedy", {"cache_implementation": "static"}, {"cache_implementation": "static"}),
        ("config", {"cache_implementation": "sliding_window"}, {"cache_implementation": "static"}),
        ("greedy", {"cache_implementation": "hybrid_chunked"}, {"cache_implementation": "static"}),
        ("config", {"cache_implementation": "offloaded_hybrid"}, {"cache_implementation": "offloaded_static"}),
        ("config", {"use_cache": False, "num_beams": None}, {"use_cache": False}),
        ("config", {"prefill_chunk_size": 64}, {"prefill_chunk_size": 64}),
        (
            "config",
            {"cache_implementation": "quantized", "cache_config": {"nbits": 2}},
            {"cache_implementation": "quantized", "cache_nbits": 2},
        ),
    ],
)
def test_what_generate_is_told(decode, told, found):
    assert settings(decode, told) == found


@pytest.mark.parametrize(
    "told",
    [{"num_beams": "4"}, {"num_beams": 0}, {"num_beams": True}, {"do_sample": "yes"}, {"temperature": "hot"},
     {"top_p": float("nan")}, {"top_k": -1}, {"num_beams": 10**12}, {"cache_implementation": ["static"]}],
)  # fmt: skip
def test_what_can_not_be_meant(told):
    with pytest.raises(ModelError, match=f"the generation config's {next(iter(told))} is"):
        decoding("config", told)


@pytest.mark.parametrize(
    "decode", ["", "Greedy", "beam", "beam:", "beam:1", "beam:0", "beam:x", "beam:9999", "beam:-2", "beam:٣"]
)
def test_what_is_no_way_to_decode(decode):
    with pytest.raises(UsageError, match="--decode"):
        checked(decode)


def test_beams_have_one_spelling():
    assert checked("beam:04") == "beam:4"


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"prompt_lookup_num_tokens": 10}, ("prompt lookup",)),
        ({"assistant_early_exit": 4, "use_mtp": True}, ("assisted decoding",)),
        ({"compile_config": {}, "guidance_scale": 1}, ()),
        ({"guidance_scale": 1.5, "output_scores": True}, ("classifier-free guidance", "scores that are kept")),
        ({"num_beams": 4, "num_beam_groups": 2}, ("groups of beams",)),
        (
            {"cache_implementation": "static"},
            ("torch.compile, which generate uses with a static cache on a GPU",),
        ),
    ],
)
def test_what_is_not_counted_is_said(told, said):
    assert decoding("config", told).uncounted == said


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((), "greedy"),
        ((("num_beams", 4),), "4 beams"),
        ((("do_sample", True), ("top_k", 20)), "sampling (top_k 20)"),
        ((("do_sample", True), ("num_beams", 3)), "3 beams that are sampled"),
        ((("use_cache", False),), "greedy (use_cache false)"),
    ],
)
def test_what_is_counted_in_words(given, said):
    assert words(given) == said


@pytest.fixture
def folder(tmp_path):
    """Writes a model's files; what they say of generate."""

    def write(generation, **config):
        known = json.loads((CONFIGS / "tiny-llama" / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(known | config))
        if generation is not None:
            (tmp_path / "generation_config.json").write_text(generation)
        return settings("config", generation_of(resolve(str(tmp_path))))

    return write


def test_a_generation_config_is_read_beside_the_config(folder):
    assert folder('{"num_beams": 4}', num_beams=2) == {"num_beams": 4}


def test_without_one_the_config_is_asked_as_from_pretrained_does(folder):
    assert folder(None, num_beams=2) == {"num_beams": 2}
    assert folder(None, num_beams=None, text_config={"num_beams": 3}) == {"num_beams": 3}


@pytest.mark.parametrize("broken", ["", "{", "[]", "7", "[" * 100_000])
def test_one_that_is_broken_is_passed_over_as_transformers_does(folder, broken):
    assert folder(broken, num_beams=2) == {"num_beams": 2}


def test_old_names_of_caches_are_those_that_transformers_takes():
    """All but "hybrid", which generate forgets: it is what the files of old releases say of a sliding window."""
    told = configuration_utils.ALL_STATIC_CACHE_IMPLEMENTATIONS
    found = {name: settings("config", {"cache_implementation": name}).get("cache_implementation") for name in told}
    assert found.pop("hybrid", None) is None
    assert all(cache == ("offloaded_static" if "offloaded" in name else "static") for name, cache in found.items())
    assert all(decoding("config", {"cache_implementation": name}).uncounted for name in found), "it is compiled"
