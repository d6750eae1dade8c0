"""--images of plan and load: the same images in both, and said in every answer."""

import json
import shutil
from dataclasses import replace

import pytest
import transformers as t

import devctl as library
from devctl.errors import UsageError
from devctl.models.footprint import Workload, peak_bytes
from devctl.models.images import Images
from tests import small_models
from tests.conftest import CONFIGS
from tests.marks import slow

LLAMA = CONFIGS / "tiny-llama"
CPU = ["--devices", "cpu=8GiB"]
TWO = "2x64x32"  # 64 tokens, and those that say where each image begins and ends


@pytest.mark.parametrize(
    ("name", "images", "said"),
    [
        ("qwen2-vl", TWO, "2 images of 64×32, 64 tokens of the text"),
        *slow(
            (
                "qwen2-vl",
                "1x30x70",
                "an image of 32×72, to which the model's processor scales 30×70, 36 tokens of the text",
            )
        ),
        *slow(("llava", "2x32x32", "2 images of 32×32, 32 tokens of the text")),
        *slow(
            ("paligemma", "1x32x32", "an image of 32×32, 16 tokens of the text"),
            (
                "gemma3",
                "2x500x40",
                "2 images of 32×32, to which the model's processor scales 500×40, 8 tokens of the text",
            ),
        ),
    ],
)
def test_a_plan_foretells_what_a_load_measures(devctl, saved, tmp_path, name, images, said):
    document = tmp_path / "plan.json"
    asked = ["--images", images, "--context-length", 120]
    planned = devctl("plan", saved(name), *CPU, *asked, "--new-tokens", 0, "--report", document)
    assert planned.code == 0, planned.err
    assert f"note: counted with {said}" in planned.err
    plan = json.loads(document.read_text())
    count, height, width = map(int, images.split("x"))
    sides = {"count": count, "height": height, "width": width}
    assert plan["workload"]["images"] == sides | {"least": None, "most": None, "processor": None}
    done = devctl("load", saved(name), "--map", "cpu", *asked, "--max-new-tokens", 0, "--json")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert f"run with {said}" in report["notes"]
    beside = plan["devices"][0]["activations"] + plan["devices"][0]["state"]
    assert beside == pytest.approx(report["smoke"]["allocated"], rel=0.01)


_SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
_TEXT = {**_SMALL, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 256, "max_position_embeddings": 512}
_VISION = {**_SMALL, "num_hidden_layers": 1, "image_size": 32, "patch_size": 8}
_MARKS = {"image_token_index": 255, "boi_token_index": 253, "eoi_token_index": 254}
CUTTING = small_models.MODALITIES | {
    "llama4": lambda: (
        t.Llama4ForConditionalGeneration,
        t.Llama4Config(
            text_config={**_TEXT, "intermediate_size_mlp": 32, "num_local_experts": 2, "pad_token_id": 0},
            vision_config={
                **_VISION,
                "intermediate_size": 64,
                "pixel_shuffle_ratio": 0.5,
                "projector_input_dim": 16,
                "projector_output_dim": 16,
                "vision_output_dim": 16,
            },
            **_MARKS,
        ),
    ),
    "llava-pixtral": lambda: (
        t.LlavaForConditionalGeneration,
        t.LlavaConfig(
            text_config={**_TEXT, "model_type": "llama"},
            vision_config={**_VISION, "model_type": "pixtral", "head_dim": 8, "image_size": 64},
            image_token_index=255,
            vision_feature_select_strategy="full",
            vision_feature_layer=-1,
        ),
    ),
    "gemma4": lambda: (
        t.Gemma4ForConditionalGeneration,
        t.Gemma4Config(
            text_config={
                **_TEXT,
                "hidden_size_per_layer_input": 0,
                "vocab_size_per_layer_input": 256,
                "num_kv_shared_layers": 0,
                "layer_types": ["sliding_attention", "full_attention"],
            },
            vision_config={
                **_VISION,
                "num_key_value_heads": 2,
                "head_dim": 8,
                "pooling_kernel_size": 2,
                "default_output_length": 70,
                "position_embedding_size": 64,
            },
            audio_config=None,
            image_token_id=255,
            boi_token_id=253,
            eoi_token_id=254,
        ),
    ),
}
CUTS = {
    "internvl": {"size": {"height": 32, "width": 32}, "max_patches": 6},
    "idefics3": {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 32}},
    "llama4": {"size": {"height": 32, "width": 32}, "max_patches": 16},
    "llava-pixtral": {"size": {"longest_edge": 64}},
    "gemma4": {"max_soft_tokens": 70},
}


@pytest.mark.parametrize(
    ("batch", "name", "images", "said"),
    [
        (2, "internvl", "2x64x33", "2 images of 64×33, each cut into 3 tiles of 32×32, 24 tokens of the text"),
        *slow(
            (
                1,
                "gemma4",
                "1x100x300",
                "an image of 112×160 in the place of 100×300, which the model's processor scales to 64×224: a bound, "
                "70 tokens of the text",
            ),
            (1, "internvl", "1x64x96", "an image of 64×96, cut into 7 tiles of 32×32, 28 tokens of the text"),
            (1, "idefics3", "2x40x40", "2 images of 40×40, each cut into 5 tiles of 32×32, 40 tokens of the text"),
            (2, "llama4", "1x64x100", "an image of 64×100, cut into 9 tiles of 32×32, 36 tokens of the text"),
            (
                1,
                "llava-pixtral",
                "2x100x60",
                "2 images of 64×40, to which the model's processor scales 100×60, 80 tokens of the text",
            ),
            (2, "gemma4", "1x112x160", "an image of 112×160, 70 tokens of the text"),
        ),
    ],
)
def test_images_that_are_cut_are_foretold_as_a_load_measures_them(devctl, tmp_path, batch, name, images, said):
    model, document = small_models.save(name, tmp_path / name, CUTTING), tmp_path / "plan.json"
    (model / "preprocessor_config.json").write_text(json.dumps(CUTS[name]))
    asked = ["--images", images, "--context-length", 200, "--batch-size", batch]
    planned = devctl("plan", model, *CPU, *asked, "--new-tokens", 0, "--report", document)
    assert planned.code == 0, planned.err
    assert f"note: counted with {said}" in planned.err
    rest = ["--context-length", 200, "--batch-size", batch, "--max-new-tokens", 0, "--json"]
    done = devctl("load", model, "--map", document, *rest)
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert f"run with {said}" in report["notes"]
    plan = json.loads(document.read_text())
    beside = plan["devices"][0]["activations"] + plan["devices"][0]["state"]
    assert beside == pytest.approx(report["smoke"]["allocated"], rel=0.01)


def test_how_an_image_is_cut_has_to_be_known(devctl, saved):
    done = devctl("plan", saved("internvl"), *CPU, "--images", "1x64x96", "--context-length", 200)
    assert (done.code, done.out) == (2, "")
    assert "how its processor cuts an image is in preprocessor_config.json, which is not at hand" in done.err


def test_without_an_image(devctl, saved):
    planned = devctl("plan", saved("llava"), *CPU, "--images", 0, "--context-length", 16)
    assert planned.code == 0
    assert "note: counted without an image" in planned.err
    done = devctl("load", saved("llava"), "--map", "cpu", "--images", 0, "--context-length", 16, "--json")
    assert done.code == 0, done.err
    assert "run without an image" in json.loads(done.out)["notes"]


@pytest.mark.parametrize("command", [["plan", *CPU], ["load", "--map", "cpu"]])
def test_a_context_that_is_too_short_is_refused(devctl, saved, command):
    name, *options = command
    done = devctl(name, saved("qwen2-vl"), *options, "--images", TWO, "--context-length", 60)
    least = 70 if name == "plan" else 69  # a plan's context has the new token in it
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(
        f"devctl: --images {TWO} takes 68 tokens of each sequence: a context of 60 is too short, and has to be at "
        f"least {least}\n"
    )


@pytest.mark.parametrize("command", [["plan", *CPU, "--context-length", 16], ["load", "--map", "cpu"]])
@pytest.mark.parametrize("images", ["0", "1x32x32"])
def test_a_model_that_sees_nothing_is_given_none(devctl, checkpoint, command, images):
    name, *options = command
    done = devctl(name, checkpoint("llama"), *options, "--images", images)
    assert (done.code, done.out) == (2, "")
    assert f"--images {images}: no image goes into LlamaForCausalLM" in done.err


@pytest.mark.parametrize("command", ["plan", "load"])
def test_what_is_no_size_is_refused(devctl, command):
    done = devctl(command, LLAMA, "--images", "2x448", *(["--context-length", 9] if command == "plan" else []))
    assert (done.code, done.out) == (2, "")
    assert "--images '2x448' is not COUNTxHEIGHTxWIDTH in pixels" in done.err


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["plan", LLAMA, "--images", TWO], "without a workload only weights are counted: leave out --images"),
        (
            ["load", LLAMA, "--images", TWO, "--image", "cat.png"],
            "--image is the only one that is run: leave out --images",
        ),
    ],
)
def test_where_they_change_nothing_they_are_refused(devctl, command, said):
    done = devctl(*command)
    assert done.code == 2
    assert said in done.err


@pytest.mark.parametrize(("images", "said"), [*slow((None, "an image of 128×128")), (TWO, "2 images of 64×32")])
def test_a_comparison_says_what_is_counted(devctl, saved, images, said):
    asked = [] if images is None else ["--images", images]
    done = devctl("plan", saved("qwen2-vl"), *CPU, "--compare", "--context-length", 1024, *asked)
    assert done.code == 0, done.err
    assert f"note: counted with {said}" in done.err


def test_keywords_are_named_as_such(saved):
    with pytest.raises(UsageError, match=r"^images 2x64x32 takes 68 tokens"):
        library.plan(saved("qwen2-vl"), "cpu=8GiB", context_length=20, images=TWO)
    with pytest.raises(UsageError, match="leave out images"):
        library.plan(LLAMA, "cpu=8GiB", images=TWO)
    with pytest.raises(UsageError, match=r"^images 'two' is not"):
        library.fits_on(LLAMA, "24GiB", context_length=20, images="two")


def test_a_config_that_no_image_goes_through_says_what_is_missing(devctl, tmp_path):
    config = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3"}
    small = {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 64, "vocab_size": 262208}
    (tmp_path / "config.json").write_text(
        json.dumps({**config, "text_config": small, "vision_config": {"num_hidden_layers": 1}})
    )
    done = devctl("plan", tmp_path / "config.json", *CPU, "--context-length", 512)
    assert done.code == 0, done.err
    assert "images are not counted: the config's mm_tokens_per_image 256 can't be made of the 14×14 patches" in done.err


def test_a_plan_keeps_the_limits_of_the_processor_for_a_load_and_a_check(devctl, saved, tmp_path):
    model, document = tmp_path / "model", tmp_path / "plan.json"
    shutil.copytree(saved("qwen2-vl"), model)
    (model / "preprocessor_config.json").write_text(json.dumps({"max_pixels": 32 * 16, "min_pixels": 16}))
    asked = ["--images", "1x64x32", "--context-length", 60]
    assert devctl("plan", model, "--max-memory", "cpu=1GiB", *asked, "--report", document).code == 0
    images = json.loads(document.read_text())["workload"]["images"]
    assert images == {"count": 1, "height": 64, "width": 32, "least": 16, "most": 512, "processor": {}}
    assert devctl("check", "--map", document, model).code == 0
    (model / "preprocessor_config.json").unlink()
    done = devctl("load", model, "--map", document, "--max-new-tokens", 0, "--json")
    assert done.code == 0, done.err
    said = "run with an image of 32×16, to which the model's processor scales 64×32"
    assert any(note.startswith(said) for note in json.loads(done.out)["notes"])
    other = devctl("load", model, "--map", document, "--images", "1x64x32", "--max-new-tokens", 0, "--json")
    assert any(note.startswith("run with an image of 64×32") for note in json.loads(other.out)["notes"])


@pytest.mark.slow
@pytest.mark.parametrize("images", [TWO, "0"])
def test_every_question_counts_the_images_that_are_asked_for(saved, images):
    """Two images take 68 tokens of each sequence, so that no context below 70 is told to fit."""
    model, asked = library.open_model(saved("qwen2-vl")), {"images": images, "overhead": 0}
    least, said = (70, "2 images of 64×32") if images == TWO else (2, "counted without an image")
    found = library.capacity(model, "8MiB,disk", context_length=100, **asked)
    assert any(said in note for note in found.notes)
    assert all(case.context_length >= least for case in found.what_if)
    assert found.what_if[0].fits is (found.what_if[0].context_length <= found.max_context)
    most = library.plan(model, "8MiB,disk", max_context=True, **asked)
    assert any(said in note for note in most.notes)
    assert least <= most.max_context.optimal <= found.max_context
    filled = library.plan(model, "8MiB,disk", target_context=100, **asked)
    assert filled.runtime.footprint.workload.batch_size == found.max_batch > 0
    assert any(said in note for note in filled.notes)
    more = library.plan(model, "8MiB,disk", context_length=100, batch_size=found.max_batch + 1, offload=False, **asked)
    assert filled.fits
    assert not more.fits


@pytest.mark.slow
def test_the_table_says_which_images_each_sequence_carries(devctl, saved):
    question = ["--devices", "1MiB,disk", "--overhead", "0B", "--what-if", "--images", TWO]
    done = devctl("plan", saved("qwen2-vl"), *question, "--json")
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert document["workload"]["images"]["count"] == 2
    assert "2 images of 64×32" in done.err
    assert all(case["context_length"] >= 70 for case in document["cases"])


@pytest.mark.parametrize("question", [["--target-context", 60], ["--context-length", 60]])
def test_a_context_that_holds_no_image_is_refused_by_every_question(devctl, saved, question):
    done = devctl("plan", saved("qwen2-vl"), "--devices", "1GiB,disk", *question, "--images", TWO)
    assert (done.code, done.out) == (2, "")
    assert f"--images {TWO} takes 68 tokens of each sequence" in done.err


def test_many_images_are_not_traced_one_by_one(saved, monkeypatch):
    """A model goes over its images one after another: of a thousand sequences, few are traced."""
    monkeypatch.setattr("devctl.planning.footprints._MOST_IMAGES", 8)
    model = library.open_model(saved("qwen2-vl"))
    work = Workload(context_length=100, batch_size=1024, images=Images(count=2, height=64, width=32))
    few, two = (replace(work, batch_size=batch) for batch in (4, 2))
    many = model.footprints.of(work)
    assert many.workload.batch_size == 1024
    assert {each.batch_size for each in model.footprints._found} <= {1, 2, 3, 4}
    traced = [model.footprints.of(each) for each in (two, few)]
    assert peak_bytes(many) >= 1024 * (peak_bytes(traced[1]) - peak_bytes(traced[0])) // 2


@pytest.mark.parametrize(
    ("asked", "holds"),
    [
        (["--context-length", 10], "transformers' generate of a text without an image"),
        (["--context-length", 100], "transformers' generate"),
        *slow(
            (["--context-length", 100, "--images", 0], "transformers' generate of a text without an image"),
            ([], "transformers' generate"),
        ),
    ],
)
def test_a_verdict_says_that_it_is_of_a_text_where_no_image_fits(devctl, saved, asked, holds):
    """An image takes 16 tokens of a text."""
    done = devctl("plan", saved("llava"), *CPU, *asked, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["engine"] == holds
    assert f"holds for: {holds}" in done.err.splitlines()
    assert ("images are not counted: an image is 16 tokens long" in done.err) == (asked[-1:] == [10])
