"""What is wrong with a config, in words that are not Python's."""

import json
import re

import pytest

from devctl.errors import ModelError
from devctl.models.files.resolve import resolve
from devctl.models.plain import in_plain_words, suspects
from devctl.models.skeleton import read_skeleton
from tests.conftest import CONFIGS
from tests.marks import one_in

PYTHON = re.compile(
    r"object (has|is) no|has no attribute|NoneType|<class|is not (iterable|callable|subscriptable)|unhashable|TypeError"
    r"|KeyError|IndexError|AttributeError|ZeroDivision|doesn't match any type|expected (int|str|bool|dict|list|float)\b"
    r"|Validation error|out of range|modulo"
)


def read(folder, config):
    (folder / "config.json").write_text(json.dumps(config))
    return read_skeleton(resolve(str(folder)), dtype="auto")


def config_of(name):
    return json.loads((CONFIGS / name / "config.json").read_text())


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("tiny-llama", {"auto_map": None}, "its auto_map is null, and should be an object, or not be there"),
        ("tiny-llama", {"dtype": "torch.bfloat16"}, 'its dtype is "torch.bfloat16", and should be "bfloat16"'),
        ("tiny-llama", {"dtype": "foo"}, 'its dtype is "foo", and should be a dtype of torch, like "bfloat16"'),
        ("tiny-llama", {"hidden_size": []}, "its hidden_size is [], and should be a whole number"),
        ("tiny-llama", {"tie_word_embeddings": 0}, "its tie_word_embeddings is 0, and should be true or false"),
        ("tiny-llama", {"pad_token_id": True}, "its pad_token_id is true, and should be a whole number or null"),
        ("tiny-llama", {"rope_parameters": "x"}, 'its rope_parameters is "x", and should be an object'),
        ("tiny-llama", {"quantization_config": [1]}, "its quantization_config is [1], and should be an object"),
        ("bert-large", {"rope_parameters": [1]}, "its rope_parameters is [1], and should be an object"),
        ("bert-large", {"layer_types": -1}, "its layer_types is -1, and should be a list"),
        ("bert-large", {"num_labels": [1]}, "its num_labels is [1], and should be a whole number"),
        ("whisper-large-v3", {"id2label": []}, "its id2label is [], and should be an object"),
        (
            "whisper-large-v3",
            {"decoder_attention_heads": 0},
            "its decoder_attention_heads is 0, and should be more than 0",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_the_value_that_is_wrong_is_named(tmp_path, name, change, said):
    with pytest.raises(ModelError) as raised:
        read(tmp_path, config_of(name) | change)
    assert said in raised.value.message
    assert not PYTHON.search(raised.value.message), raised.value.message


def test_only_torch_dtype_of_an_old_config(tmp_path):
    config = {key: value for key, value in config_of("tiny-llama").items() if key != "dtype"}
    with pytest.raises(ModelError, match=r'its torch_dtype is "torch\.bfloat16", and should be "bfloat16"'):
        read(tmp_path, config | {"torch_dtype": "torch.bfloat16"})


@pytest.mark.parametrize("name", ["tiny-llama", "bert-large"])
@pytest.mark.parametrize("value", one_in(2, [None, True, "x", -1, 1.5, [], {}]))
def test_no_message_is_pythons_whatever_a_config_says(tmp_path, name, value):
    config = config_of(name)
    for key in (
        "hidden_size",
        "vocab_size",
        "num_hidden_layers",
        "rope_parameters",
        "eos_token_id",
        "use_cache",
        "id2label",
    ):
        try:
            read(tmp_path, config | {key: value})
        except ModelError as error:
            assert not PYTHON.search(error.message), (key, error.message)


def test_a_sentence_of_transformers_is_kept(tmp_path):
    with pytest.raises(ModelError, match="The hidden size") as raised:
        read(tmp_path, config_of("tiny-llama") | {"hidden_size": 33})
    assert "validator" not in raised.value.message


def test_a_class_that_is_not_of_the_config_is_told_what_it_lacks(tmp_path):
    with pytest.raises(ModelError, match=r"can't be built from this config: a MistralConfig has no \w+, which"):
        read(tmp_path, config_of("tiny-llama") | {"model_type": "mistral"})


def test_configs_that_are_right_have_no_suspects():
    for path in CONFIGS.glob("*/config.json"):
        assert list(suspects(json.loads(path.read_text()))) == [], path


def test_a_word_that_code_looks_for_in_vain_is_named_by_its_key():
    config = {"model_type": "none", "hidden_act": "gelu", "rope_scaling": {"factor": 2, "type": "nope"}}
    error = KeyError("nope")
    assert in_plain_words(error, config) == 'its rope_scaling.type is "nope", which transformers does not know'
    assert "does not work with a value in it" in in_plain_words(KeyError("absent"), config)


def test_where_nothing_is_suspect_the_place_is_named():
    def modeling():
        return {}["x"]

    with pytest.raises(KeyError) as raised:
        modeling()
    assert in_plain_words(raised.value, {}) == "transformers does not work with a value in it (KeyError)"
    assert in_plain_words(ValueError("must be even"), {}) == "must be even"


@pytest.mark.parametrize(
    ("text", "called"), [("[1]", "a list"), ("null", "null"), ('"x"', "a text"), ("7", "a whole number")]
)
def test_json_that_is_no_object_is_called_what_it_is(tmp_path, text, called):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=f"is not a model config: it is {called}, not an object"):
        _ = resolve(str(tmp_path)).config
