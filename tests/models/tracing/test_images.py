"""Images that are asked for: what is predicted, beside what a real run holds, and what is refused."""

import ast
import math
from pathlib import Path

import pytest
import torch
import transformers

from devctl.errors import TooFewTokensError, UsageError
from devctl.models.files.processor import limited
from devctl.models.files.resolve import resolve
from devctl.models.footprint import Workload, dump_footprint, parse_footprint, peak_bytes
from devctl.models.images import Images, parse_images
from devctl.models.inputs import image_ids, inputs_of
from devctl.models.skeleton import read_skeleton
from devctl.models.special_inputs import unseeing
from devctl.models.tracing.trace import trace_footprint
from tests import metered, small_models
from tests.marks import slow

SIZES = {"qwen2-vl": (224, 336), "qwen3-vl": (256, 320), "llava": (112, 112), "gemma3": (112, 112)}


def skeleton_of(name, folder, table=metered.SEEING):
    model_class, config = table[name]()
    config.architectures = [model_class.__name__]
    config.save_pretrained(folder)
    return read_skeleton(resolve(str(folder)))


@pytest.mark.parametrize("count", [1, *slow(2)])
@pytest.mark.parametrize("name", ["llava", *slow("qwen3-vl", "qwen2-vl", "gemma3")])
def test_the_peak_is_that_of_a_real_run_with_as_many_images(name, count):
    height, width = SIZES[name]
    work = Workload(
        context_length=512, new_tokens=2, batch_size=2, images=Images(count=count, height=height, width=width)
    )
    assert -0.02 <= metered.error(name, work, images=(height, width, count)) <= 0.02


@pytest.mark.slow
def test_an_image_more_takes_more_and_none_takes_less(tmp_path):
    skeleton = skeleton_of("qwen3-vl", tmp_path)
    found = [
        trace_footprint(skeleton, Workload(context_length=512, images=parse_images(text)))
        for text in ("0", "1x256x320", "2x256x320")
    ]
    peaks = [peak_bytes(each) for each in found]
    assert peaks == sorted(set(peaks))
    assert [each.image_tokens for each in found] == [0, 82, 164]
    assert [each.beside_text for each in found] == [
        "counted without an image",
        "counted with an image of 256×320, 80 tokens of the text",
        "counted with 2 images of 256×320, 160 tokens of the text",
    ]
    assert all(each.exact for each in found)


def test_a_footprint_with_images_is_kept_whole(tmp_path):
    work = Workload(context_length=128, images=Images(count=1, height=64, width=64, least=1, most=10**6))
    footprint = trace_footprint(skeleton_of("qwen3-vl", tmp_path), work)
    assert parse_footprint(dump_footprint(footprint)) == footprint


@pytest.mark.parametrize(
    ("name", "asked", "said"),
    [
        ("qwen2-vl", "1x225x335", "an image of 224×336, to which the model's processor scales 225×335, 96 tokens"),
        *slow(
            ("gemma3", "3x500x300", "3 images of 112×112, to which the model's processor scales 500×300, 48 tokens"),
            ("llava", "2x500x300", "2 images of 112×112, to which the model's processor scales 500×300, 128 tokens"),
        ),
    ],
)
def test_another_size_is_said_to_be_scaled(tmp_path, name, asked, said):
    work = Workload(context_length=256, images=parse_images(asked))
    footprint = trace_footprint(skeleton_of(name, tmp_path), work)
    assert footprint.notes == (f"counted with {said} of the text",)


def test_a_context_that_is_too_short_says_how_long_it_has_to_be(tmp_path):
    skeleton = skeleton_of("qwen3-vl", tmp_path)
    two = parse_images("2x256x320")
    with pytest.raises(TooFewTokensError, match=r"takes 164 tokens .* a context of 166 .* at least 167") as error:
        trace_footprint(skeleton, Workload(context_length=166, new_tokens=2, images=two))
    assert error.value.needed == 167
    for least, new in ((166, 1), (167, 2)):
        found = trace_footprint(skeleton, Workload(context_length=least, new_tokens=new, images=two))
        assert found.image_tokens == 164


@pytest.mark.parametrize("asked", ["0", "1x32x32"])
@pytest.mark.parametrize(
    ("name", "why"), [("vit", "no image stands in the text of ViT"), ("llama", "no image goes into LlamaForCausalLM")]
)
def test_a_model_that_sees_nothing_between_words_is_given_none(name, why, asked):
    skeleton = small_models.skeleton(name)
    with pytest.raises(UsageError, match=f"--images {asked}: {why}"):
        trace_footprint(skeleton, Workload(context_length=20, images=parse_images(asked)))


def test_a_size_for_a_model_whose_tiles_are_not_known_is_refused(tmp_path):
    skeleton = skeleton_of("idefics3", tmp_path, small_models.MODALITIES)
    with pytest.raises(UsageError, match="how its processor cuts an image is in"):
        trace_footprint(skeleton, Workload(context_length=64, images=parse_images("1x32x32")))
    assert trace_footprint(skeleton, Workload(context_length=64, images=parse_images("0"))).image_tokens == 0


# the sizes that processors make


def smart_resize():
    """The function of transformers, whose module needs packages that may not be here."""
    path = Path(transformers.__file__).parent / "models" / "qwen2_vl" / "image_processing_qwen2_vl.py"
    found = [node for node in ast.parse(path.read_text()).body if getattr(node, "name", "") == "smart_resize"]
    names = {"math": math}
    exec(compile(ast.Module(body=found, type_ignores=[]), str(path), "exec"), names)  # noqa: S102
    return names["smart_resize"]


@pytest.mark.parametrize("size", [(448, 640), (450, 630), (17, 90), (1000, 30), (3000, 2000), (5, 5), (42, 70)])
@pytest.mark.parametrize(("least", "most"), [(56 * 56, 28 * 28 * 1280), (65536, 16777216)])
def test_sizes_are_those_of_transformers_own_function(size, least, most):
    model_class, config = metered.SEEING["qwen2-vl"]()
    images = Images(count=1, height=size[0], width=size[1], least=least, most=most)
    assert inputs_of(config, model_class, images, shapes=True).size == smart_resize()(*size, 28, least, most)


def test_without_the_processors_file_nothing_is_scaled_down():
    model_class, config = metered.SEEING["qwen2-vl"]()
    assert inputs_of(config, model_class, parse_images("1x8000x8000"), shapes=True).size == (8008, 8008)


def test_a_sliver_is_refused_as_the_processor_does():
    model_class, config = metered.SEEING["qwen2-vl"]()
    with pytest.raises(UsageError, match="one side more than 200 times the other"):
        inputs_of(config, model_class, parse_images("1x10x2001"))


@pytest.mark.parametrize(
    ("file", "text", "limits"),
    [
        ("preprocessor_config.json", '{"min_pixels": 3136, "max_pixels": 12845056}', (3136, 12845056)),
        ("preprocessor_config.json", '{"size": {"shortest_edge": 65536, "longest_edge": 16777216}}', (65536, 16777216)),
        ("processor_config.json", '{"image_processor": {"size": {"longest_edge": 99}}}', (None, 99)),
        ("preprocessor_config.json", '{"max_pixels": "many", "size": 336}', (None, None)),
        ("preprocessor_config.json", "[", (None, None)),
    ],
)
def test_limits_are_those_of_the_models_own_files(tmp_path, file, text, limits):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / file).write_text(text)
    found = limited(parse_images("1x10x10"), resolve(str(tmp_path)))
    assert (found.least, found.most) == limits


# words


@pytest.mark.parametrize(
    "text", ["", "2", "2x448", "x448x448", "2x448x448x3", "-1x4x4", "1x0x4", "0x4x4", "1x4.5x4", "1X4X4", "٢x٤x٤"]
)
def test_what_is_no_count_and_size_is_refused(text):
    with pytest.raises(ValueError, match=r"COUNTxHEIGHTxWIDTH|a part that is 0"):
        parse_images(text)


@pytest.mark.parametrize("text", ["4097x1x1", "1x16385x1", "1x1x999999", "4096x1024x1024"])
def test_more_than_is_counted_is_refused(text):
    with pytest.raises(ValueError, match="more than devctl counts"):
        parse_images(text)


def test_height_comes_before_width():
    assert parse_images(" 2x448x640 ") == Images(count=2, height=448, width=640)
    assert str(parse_images("2x448x640")) == "2x448x640"
    assert str(parse_images("0")) == "0"


def test_images_side_by_side_are_kept_apart():
    _, config = small_models.MODALITIES["llava"]()
    assert image_ids(config, [2]) == [255, 255]
    assert image_ids(config, [2, 1]) == [255, 255, 1, 255, 1]
    _, config = small_models.MODALITIES["qwen2-vl"]()
    assert image_ids(config, [2, 1]) == [252, 250, 250, 253, 252, 250, 253]


# configs through which no image goes


def test_a_config_that_pools_more_than_it_has_says_what_is_missing(tmp_path):
    config = transformers.Gemma3Config(architectures=["Gemma3ForConditionalGeneration"])
    why = unseeing(config)
    assert why.startswith("the config's mm_tokens_per_image 256 can't be made of the 14×14 patches")
    own = transformers.Gemma3Config(vision_config={"image_size": 896, "patch_size": 14})
    assert unseeing(own) is None
    model_class = transformers.Gemma3ForConditionalGeneration
    with pytest.raises(UsageError, match="mm_tokens_per_image 256 can't be made"):
        inputs_of(config, model_class, parse_images("1x896x896"))
    assert not inputs_of(config, model_class).media


def test_a_config_whose_vision_part_is_missing_says_so():
    assert "vision_config does not fit together, or is missing" in unseeing(transformers.Llama4Config())
    vision = {"hidden_size": 1408, "intermediate_size": 5632, "vision_output_dim": 4096}
    assert unseeing(transformers.Llama4Config(vision_config=vision)) is None


def test_shapes_alone_take_no_memory():
    model_class, config = metered.SEEING["qwen2-vl"]()
    media = inputs_of(config, model_class, parse_images("4x8000x8000"), shapes=True).media
    assert media["pixel_values"].device == torch.device("meta")
    assert media["image_grid_thw"].tolist() == [[1, 572, 572]] * 4
