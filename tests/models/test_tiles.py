"""Images that processors cut into tiles, or scale: the numbers are those of transformers' own functions.

Their modules need packages that may not be here, so that the functions are taken out of the source.
"""

import ast
import math
import re
from collections import defaultdict
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers

from devctl.models.images import Images
from devctl.models.inputs import image_ids, inputs_of
from devctl.models.special_inputs import resized
from devctl.models.tiles import tiles_of
from tests.marks import one_in

MODELS = Path(transformers.__file__).parent / "models"
SIZES = [(448, 640), (640, 448), (17, 900), (1000, 30), (3000, 2000), (5, 5), (336, 336), (1024, 1023), (700, 4200)]


def taken(path, *names, **given):
    """Functions and methods of a module, with what they need ``given``."""
    tree = ast.parse((MODELS / path).read_text())
    found = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name in names]
    for node in found:
        node.decorator_list = [each for each in node.decorator_list if "auto_docstring" not in ast.dump(each)]
        node.returns = None
        for argument in ast.walk(node.args):
            if isinstance(argument, ast.arg):
                argument.annotation = None
    space = {"math": math, "torch": torch, "lru_cache": lru_cache, "defaultdict": defaultdict, **given}
    exec(compile(ast.Module(body=found, type_ignores=[]), path, "exec"), space)  # noqa: S102
    return SimpleNamespace(**{name: space[name] for name in names})


def asked(high, wide, /, **settings):
    return Images(count=1, height=high, width=wide, processor=tuple(sorted(settings.items())))


@pytest.mark.parametrize("size", one_in(3, SIZES, whole=True))
@pytest.mark.parametrize(("least", "most"), [(1, 12), (1, 6), (2, 40), (1, 1)])
def test_internvl(size, least, most):
    real = taken(
        "got_ocr2/image_processing_got_ocr2.py",
        "get_all_supported_aspect_ratios",
        "get_optimal_tiled_canvas",
        "get_number_of_image_patches",
    )
    processor = SimpleNamespace(
        min_patches=least, max_patches=most, size={"height": 448, "width": 448}, crop_to_patches=False
    )
    count = real.get_number_of_image_patches(processor, *size, {"crop_to_patches": True})
    config = SimpleNamespace(model_type="internvl")
    found = tiles_of(config, asked(*size, min_patches=least, max_patches=most, height=448), (448, 448))
    assert found.count == count
    tokens = taken("internvl/processing_internvl.py", "_get_num_multimodal_tokens", MultiModalData=SimpleNamespace)
    whole = SimpleNamespace(
        image_seq_length=256,
        image_processor=SimpleNamespace(get_number_of_image_patches=lambda *_: count),
        _merge_kwargs=lambda: {"images_kwargs": {}},
    )
    (told,) = tokens._get_num_multimodal_tokens(whole, [size]).num_image_tokens
    assert 256 * found.count + found.beside == told


@pytest.mark.parametrize("size", one_in(3, SIZES, whole=True))
@pytest.mark.parametrize("splits", [True, False])
@pytest.mark.parametrize(("longest", "tile"), one_in(2, [(1456, 364), (2048, 512), (512, 512)]))
@pytest.mark.parametrize("kind", ["idefics3", "smolvlm"])
def test_idefics3(kind, size, splits, longest, tile):
    real = taken(
        f"{kind}/image_processing_{kind}.py",
        "_resize_output_size_rescale_to_max_len",
        "_resize_output_size_scale_below_upper_bound",
        "get_number_of_image_patches",
        MAX_IMAGE_SIZE=4096,
    )
    processor = SimpleNamespace(
        do_image_splitting=splits, max_image_size={"longest_edge": tile}, size={"longest_edge": longest}
    )
    count = real.get_number_of_image_patches(processor, *size)
    settings = {"do_image_splitting": int(splits), "longest_edge": longest, "tile": tile}
    found = tiles_of(SimpleNamespace(model_type=kind), asked(*size, **settings), (tile, tile))
    assert found.count == max(1, count[0])
    tokens = taken("idefics3/processing_idefics3.py", "_get_num_multimodal_tokens", MultiModalData=SimpleNamespace)
    whole = SimpleNamespace(
        image_seq_len=64,
        image_processor=SimpleNamespace(get_number_of_image_patches=lambda *_: count),
        tokenizer=lambda *_, **__: {"input_ids": [1]},
        _merge_kwargs=lambda: {"images_kwargs": {}},
    )
    (told,) = tokens._get_num_multimodal_tokens(whole, [size]).num_image_tokens
    assert 64 * found.count + found.beside == told


@pytest.mark.parametrize("size", one_in(3, SIZES, whole=True))
@pytest.mark.parametrize(("most", "largest"), [(16, False), (16, True), (5, False), (1, False)])
def test_llama4(size, most, largest):
    side = SimpleNamespace(height=336, width=336)
    real = taken(
        "llama4/image_processing_llama4.py",
        "get_factors",
        "find_supported_resolutions",
        "get_best_fit",
        SizeDict=None,
    )
    canvases = torch.tensor(real.find_supported_resolutions(most, Side(336)))
    high, wide = real.get_best_fit(size, canvases, resize_to_max_canvas=largest).tolist()
    rows, columns = high // side.height, wide // side.width
    settings = {"max_patches": most, "resize_to_max_canvas": int(largest), "height": 336}
    found = tiles_of(SimpleNamespace(model_type="llama4"), asked(*size, **settings), (336, 336))
    assert found.count == (rows * columns + 1 if rows * columns > 1 else 1)
    prompt = taken("llama4/processing_llama4.py", "_prompt_split_image")._prompt_split_image(None, (rows, columns), 144)
    first_and_last = 2
    assert 144 * found.count + found.beside + first_and_last == len(re.findall(r"<\|\w+\|>", prompt))


class Side:
    """A size that can be looked up again, as transformers keeps what it found."""

    def __init__(self, side):
        self.height = self.width = side

    def __hash__(self):
        return self.height

    def __eq__(self, other):
        return self.height == other.height


@pytest.mark.parametrize("size", [*SIZES, (3, 3000), (100, 40000)])
def test_gemma4(size):
    real = taken("gemma4/image_processing_gemma4.py", "get_aspect_ratio_preserving_size")
    config = SimpleNamespace(
        model_type="gemma4",
        vision_config=SimpleNamespace(
            model_type="gemma4_vision", patch_size=16, pooling_kernel_size=3, default_output_length=280
        ),
    )
    try:
        told = real.get_aspect_ratio_preserving_size(*size, 16, 280 * 9, 3)
    except ValueError:
        with pytest.raises(ValueError, match="its processor"):
            resized(config, asked(*size), (224, 224))
        return
    assert resized(config, asked(*size), (224, 224)) == told
    assert resized(config, asked(*size, max_soft_tokens=70), (224, 224)) is None  # another number than the model's


@pytest.mark.parametrize("size", one_in(3, SIZES, whole=True))
@pytest.mark.parametrize("longest", [1024, 64, None])
def test_llava_with_pixtral(size, longest):
    real = taken(
        "pixtral/image_processing_pixtral.py",
        "_num_image_tokens",
        "get_resize_output_image_size",
        get_image_size=lambda size, _: size,
    )
    config = pixtral()
    found = resized(config, asked(*size, **({} if longest is None else {"longest_edge": longest})), (64, 64))
    assert found == real.get_resize_output_image_size(size, longest or 2**20, 8)
    images = asked(*size, longest_edge=64)
    wants = inputs_of(config, transformers.LlavaForConditionalGeneration, images, shapes=True)
    rows, columns = (side // 8 for side in wants.size)
    assert len(image_ids(config, [wants.image_tokens], wants.beside)) == (columns + 1) * rows
    assert wants.media["image_sizes"].tolist() == [list(wants.size)]


def pixtral():
    vision = {"model_type": "pixtral", "hidden_size": 16, "num_attention_heads": 2, "patch_size": 8, "image_size": 64}
    return transformers.LlavaConfig(
        text_config={"model_type": "llama", "hidden_size": 16, "num_attention_heads": 2},
        vision_config=vision,
        vision_feature_select_strategy="full",
    )


@pytest.mark.parametrize("kind", ["internvl", "idefics3", "smolvlm", "llama4"])
def test_what_can_not_be_known_is_refused(kind):
    config = SimpleNamespace(model_type=kind)
    with pytest.raises(ValueError, match=r"preprocessor_config.json, which is not at hand"):
        tiles_of(config, Images(count=1, height=9, width=9), (364, 364))
    with pytest.raises(ValueError, match="tiles of 448 pixels a side, and the config has 364×364"):
        tiles_of(config, asked(9, 9, height=448, tile=448), (364, 364))
    assert tiles_of(SimpleNamespace(model_type="llava"), Images(count=1, height=9, width=9), (9, 9)) is None


@pytest.mark.parametrize("kind", ["internvl", "llama4"])
def test_as_many_tiles_as_anybody_writes_are_counted(kind):
    found = tiles_of(SimpleNamespace(model_type=kind), asked(16384, 16384, max_patches=4096), (336, 336))
    assert 1 < found.count <= 4097
