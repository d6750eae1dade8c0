"""What a class keeps in float32 is planned with the bytes that a load then counts."""

from functools import partial

import pytest
import torch
import transformers

from devctl.devices import Device
from devctl.loading.proofs.places import find_places
from devctl.loading.weights import loader
from devctl.loading.weights.loader import LoadFormat
from devctl.models.files.resolve import resolve
from devctl.models.skeleton import Purpose, read_skeleton
from devctl.placement.placement import bytes_per_device
from tests import small_models
from tests.marks import one_in

CPU = Device.cpu()


def instruct_blip():
    """Of the parts that the small BLIP-2 has: those of its default config take gigabytes."""
    _, config = small_models.MODALITIES["blip2"]()
    parts = {
        f"{part}_config": {
            key: value
            for key, value in getattr(config, f"{part}_config").to_dict().items()
            if key != "model_type" or part == "text"
        }
        for part in ("vision", "qformer", "text")
    }
    return transformers.InstructBlipForConditionalGeneration, transformers.InstructBlipConfig(
        **parts, num_query_tokens=4, image_token_index=255
    )


ALL = {
    **small_models.TINY,
    **small_models.MODALITIES,
    **{name: partial(small_models.of_class, name, **own) for name, own in small_models.SWEPT.items()},
    "InstructBlipForConditionalGeneration": instruct_blip,
}
KEEPING = (
    "t5",
    "t5-encoder",
    "gpt-oss",
    "rwkv",
    "blip2",
    "MT5ForConditionalGeneration",
    "DeepseekV3ForCausalLM",
)


def planned_and_loaded(make, folder, dtype, load_format=LoadFormat.AUTO):
    """Bytes on the CPU: planned, as the modules were built, and loaded."""
    model_class, config = make()
    config.architectures = [model_class.__name__]
    torch.manual_seed(0)
    (config if load_format is LoadFormat.DUMMY else model_class(config)).save_pretrained(folder)
    source = resolve(str(folder))
    random = load_format is LoadFormat.DUMMY
    skeleton = read_skeleton(source, dtype=dtype, purpose=Purpose.RANDOM if random else Purpose.PLAN)
    model, _ = loader.load(
        source, skeleton, {"": CPU}, load_format=load_format, folder=None, on_progress=lambda _: None
    )
    measured = dict(find_places(model, {"": CPU}).measured)[CPU]
    return bytes_per_device(skeleton.tree, {"": CPU})[CPU], skeleton.tree.index.nbytes[""], measured


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", one_in(3, KEEPING))
def test_a_plan_counts_what_is_kept_in_float32(name, dtype, tmp_path):
    used, built, loaded = planned_and_loaded(ALL[name], tmp_path, dtype)
    assert used == loaded
    strict = name == "DeepseekV3ForCausalLM"  # in either of the narrow dtypes
    assert (used > built) == (dtype == "float16" or strict)


@pytest.mark.parametrize("name", ["t5", "DeepseekV3ForCausalLM"])
def test_random_weights_are_kept_in_float32_too(name, tmp_path):
    used, built, loaded = planned_and_loaded(ALL[name], tmp_path, "float16", LoadFormat.DUMMY)
    assert used == loaded
    assert (used > built) == (name == "t5")  # the other's is a buffer, which is not made up


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_every_small_model_takes_what_is_planned(name, tmp_path):
    """In float16, in which most is kept; in bfloat16 where anything is, of which that may keep less."""
    used, built, loaded = planned_and_loaded(ALL[name], tmp_path / "float16", "float16")
    assert used == loaded
    if used != built:
        used, _, loaded = planned_and_loaded(ALL[name], tmp_path / "bfloat16", "bfloat16")
        assert used == loaded
