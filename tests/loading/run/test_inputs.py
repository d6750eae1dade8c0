"""A plan counts with the inputs that a load runs on."""

import functools
import inspect
import json
import tempfile

import pytest
import torch
import transformers

from devctl.errors import LoadError, first_line
from devctl.loading.run.inputs import prepare
from devctl.models.files.resolve import resolve
from devctl.models.footprint import Workload
from devctl.models.inputs import batch_of, inputs_of, told
from devctl.models.skeleton import empty_model, read_skeleton
from devctl.models.tracing.fake_run import FakeModel
from devctl.models.tracing.prompts import MadeUp
from devctl.models.tracing.trace import trace_footprint
from tests import small_models
from tests.marks import one_in, slow

TEXT = {"input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids", "decoder_input_ids"}
"""Made as long as is asked."""

FIRST = ["llava", "speech-to-text", "sam", "clap"]
"""Modalities that the fast tests compare."""

FEW = [
    *slow("AltCLIPModel", "DepthAnythingForDepthEstimation", "VideoMAEModel"),
    "JanusForConditionalGeneration",
    "Qwen2VLForConditionalGeneration",
    "ViTForImageClassification",
    *slow("Gemma3ForConditionalGeneration", "SamModel", "SmolVLMForConditionalGeneration"),
]


@functools.cache
def classes():
    """A model class with images for each config class of the Auto classes."""
    auto = transformers.models.auto.modeling_auto
    found = {}
    for name in sorted(name for name in dir(auto) if name.startswith("MODEL_") and name.endswith("_MAPPING")):
        mapping = getattr(auto, name)
        for config_class in mapping:
            try:
                one = mapping[config_class]
            except ValueError:  # an entry whose class transformers does not export
                continue
            for model_class in one if isinstance(one, tuple | list) else (one,):
                # one with backends stands in for what needs a package that is not here
                if not hasattr(model_class, "_backends") and "pixel_values" in arguments(model_class):
                    found.setdefault(config_class, model_class)
    return {model_class.__name__: (model_class, config_class) for config_class, model_class in found.items()}


def arguments(model_class):
    return inspect.signature(model_class.forward).parameters if model_class is not None else {}


def saved(model_class, config, folder):
    config.architectures = [model_class.__name__]
    config.save_pretrained(folder)
    source = resolve(str(folder))
    return source, read_skeleton(source, dtype="float32")


def skeleton_of(model_class, config):
    with tempfile.TemporaryDirectory() as folder:
        return saved(model_class, config, folder)[1]


def loaded_shapes(source, skeleton, batch_size=2):
    """What a load gives the model beside its text; None where it says that it knows no images for it."""
    made = prepare(source, skeleton, prompt=None, new_tokens=0, trust_remote_code=False, batch_size=batch_size)
    if any(note.startswith("no images ") for note in made.notes):
        return None
    return shapes(made.tensors)


def traced_shapes(skeleton, batch_size=2):
    """What the tracer gives the model beside its text."""
    model = FakeModel(skeleton, Workload(context_length=4096, batch_size=batch_size), alike=True, most=1)
    with model.world.entered():
        return shapes(model.prompts.make(4096, images=model.images))


def shapes(tensors):
    return {name: tuple(tensor.shape) for name, tensor in tensors.items() if name not in TEXT}


@pytest.mark.parametrize("name", FEW)
def test_the_tracer_takes_what_a_load_does(name, tmp_path):
    model_class = getattr(transformers, name)  # `classes` imports them all, which takes seconds
    # its default config pools more patches than there are
    gemma3 = {"vision_config": {"image_size": 896, "patch_size": 14, "num_hidden_layers": 1}}
    own = gemma3 if name.startswith("Gemma3") else {}
    source, skeleton = saved(model_class, model_class.config_class(**own), tmp_path)
    loaded, traced = loaded_shapes(source, skeleton), traced_shapes(skeleton)
    assert "pixel_values" in traced
    assert loaded in (traced, None)
    assert (loaded is None) == (name == "JanusForConditionalGeneration")


@pytest.mark.parametrize("name", [*FIRST, *slow(*(name for name in small_models.MODALITIES if name not in FIRST))])
def test_of_every_modality_the_tracer_takes_what_a_load_does(name, tmp_path):
    source, skeleton = saved(*small_models.MODALITIES[name](), tmp_path)
    assert loaded_shapes(source, skeleton) == traced_shapes(skeleton)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_for_every_default_config_with_images_the_tracer_takes_what_a_load_does(tmp_path):
    compared, unknown = 0, {}
    for name, (model_class, config_class) in classes().items():
        try:
            source, skeleton = saved(model_class, config_class(), tmp_path / name)
        except Exception as error:  # noqa: BLE001 - a default config need not build
            unknown[name] = f"not built: {first_line(error)}"
            continue
        try:
            loaded = loaded_shapes(source, skeleton)
        except LoadError as error:
            with pytest.raises(ValueError, match="no inputs are known"):
                traced_shapes(skeleton)
            unknown[name] = error.message
            continue
        if loaded is None:
            unknown[name] = "no images are known"
            continue
        assert loaded == traced_shapes(skeleton), name
        compared += 1
    assert compared > 150, unknown


def depth_anything():
    """One whose peak is in its backbone's MLP: the convolutions behind it are small, as their scratch is not known."""
    backbone = transformers.Dinov2Config(
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        mlp_ratio=8,
        image_size=56,
        patch_size=4,
        out_indices=[1, 2, 3, 4],
        reshape_hidden_states=False,
        apply_layernorm=True,
    )
    config = transformers.DepthAnythingConfig(
        backbone_config=backbone,
        patch_size=4,
        reassemble_hidden_size=256,
        neck_hidden_sizes=[16, 16, 16, 16],
        fusion_hidden_size=16,
        head_hidden_size=8,
    )
    return transformers.DepthAnythingForDepthEstimation, config


def test_a_plan_foretells_what_a_load_measures(devctl, tmp_path):
    model_class, config = depth_anything()
    torch.manual_seed(0)
    model_class(config).save_pretrained(tmp_path / "model")
    document = tmp_path / "plan.json"
    options = ["--devices", "cpu=8GiB", "--context-length", "2", "--new-tokens", "0", "--report", document]
    planned = devctl("plan", tmp_path / "model", *options)
    assert planned.code == 0, planned.err
    assert "note: counted with an image of 56×56" in planned.err
    foretold = json.loads(document.read_text())["devices"][0]["activations"]
    report = json.loads(devctl("load", tmp_path / "model", "--map", "cpu", "--json").out)
    assert foretold == pytest.approx(report["smoke"]["allocated"], rel=0.001)


# what a plan says that it took


@pytest.mark.parametrize(
    ("name", "said"),
    one_in(
        3,
        [
            ("t5-encoder", None),
            ("vit", "an image of 32×32"),
            ("timesformer", "a film of 2 frames of 32×32"),
            ("llava", "an image of 32×32, 16 tokens of the text"),
            ("qwen2-vl", "an image of 128×128, 256 tokens of the text"),
            ("wav2vec2", "a sound of 1 s"),
            ("clap", "a spectrum of 1×256×16"),
            ("patchtst", "past_values of 16×2"),
        ],
    ),
)
def test_a_footprint_says_what_it_was_counted_with(name, said):
    skeleton = (
        small_models.skeleton(name) if name in small_models.TINY else skeleton_of(*small_models.MODALITIES[name]())
    )
    workload = Workload(context_length=300, batch_size=2, new_tokens=1 if skeleton.model_class.can_generate() else 0)
    footprint = trace_footprint(skeleton, workload)
    assert footprint.exact
    assert footprint.notes == (() if said is None else (f"counted with {said}",))


def test_the_inputs_of_a_known_run_need_not_be_said():
    skeleton = small_models.skeleton("vit")
    given = batch_of(inputs_of(skeleton.config, skeleton.model_class).media, 2)
    workload = Workload(context_length=1, batch_size=2, new_tokens=0)
    assert trace_footprint(skeleton, workload, given=given).notes == ()


def test_sounds_that_no_way_is_known_for_are_not_counted():
    footprint = trace_footprint(skeleton_of(*small_models.TEXT_ONLY["qwen2-audio"]()), Workload(context_length=40))
    assert footprint.notes == ("sounds are not counted: none are known for Qwen2AudioForConditionalGeneration",)
    assert not footprint.exact


def test_an_image_that_is_longer_than_the_text_is_not_counted():
    footprint = trace_footprint(skeleton_of(*small_models.MODALITIES["qwen2-vl"]()), Workload(context_length=40))
    assert footprint.notes == ("images are not counted: an image is 258 tokens long, the prompt 39",)
    assert not footprint.exact


def test_a_sound_at_the_rate_of_its_model():
    model_class, config = small_models.MODALITIES["encodec"]()
    assert config.sampling_rate == 24_000
    assert told(config, inputs_of(config, model_class).media) == "a sound of 0.667 s"


def test_tiles_and_what_has_no_name():
    config = transformers.ViTConfig()
    assert told(config, {"pixel_values": torch.zeros(1, 2, 3, 20, 30)}) == "an image of 2 tiles of 20×30"
    assert told(config, {"pixel_values": torch.zeros(1, 1, 3, 20, 30)}) == "an image of 20×30"
    assert told(config, {}) is None


def test_a_text_that_says_what_to_look_for_in_an_image():
    """SAM 3 does not generate, and needs a text beside its image though its forward's argument has a default."""
    assert inputs_of(transformers.Sam3Config(), transformers.Sam3Model).text
    assert not inputs_of(transformers.CLIPVisionConfig(), transformers.CLIPVisionModel).text


def test_a_model_with_two_main_inputs_says_which(tmp_path):
    source, skeleton = saved(transformers.OneFormerForUniversalSegmentation, transformers.OneFormerConfig(), tmp_path)
    with pytest.raises(LoadError, match="which takes 'pixel_values and task_inputs'"):
        loaded_shapes(source, skeleton)
    with pytest.raises(ValueError, match="which takes 'pixel_values and task_inputs'"):
        traced_shapes(skeleton)


@pytest.mark.parametrize(("name", "told"), [("gemma3", {0, 1}), ("paligemma", {0})])
def test_a_text_with_an_image_says_which_is_which_as_the_processor_does(name, told):
    model_class, config = small_models.MODALITIES[name]()
    skeleton = skeleton_of(model_class, config)
    made = MadeUp(empty_model(skeleton), 2, padded=False).make(40, images=True)
    assert set(made["token_type_ids"].unique().tolist()) == told
    assert made["token_type_ids"].shape == made["input_ids"].shape
    assert "token_type_ids" not in MadeUp(empty_model(skeleton), 2, padded=False).make(40)
    if name == "gemma3":
        assert made["token_type_ids"].equal((made["input_ids"] == config.image_token_id).long())
