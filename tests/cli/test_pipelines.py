"""Pipelines of diffusers on the command line, against what diffusers loads."""

import json
import shutil

import jsonschema
import pytest
import torch

from devctl.devices import Device
from devctl.models.pipelines import kept_in_float32, offload_order
from devctl.placement.budget import Budgets
from devctl.placement.components import Way, ways
from tests import pipelines
from tests.adapters import write_safetensors
from tests.cli.test_documents import schema
from tests.hub import point_at, serve
from tests.marks import one_in

SCHEMA = "planning/pipeline.schema.json"
BOX = ("--devices", "1GiB,cpu=1GiB")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipelines")
    both = pipelines.save(folder / "both")
    pipelines.save(both, dtype=torch.float16, variant="fp16")
    return {
        "float32": pipelines.save(folder / "float32"),
        "float16": pipelines.save(folder / "float16", dtype=torch.float16),
        "both": both,
        "variant": pipelines.save(folder / "variant", dtype=torch.float16, variant="fp16"),
        "shards": pipelines.save(folder / "shards", shard="40KB"),
        "shards of a variant": pipelines.save(folder / "sv", dtype=torch.float16, variant="fp16", shard="40KB"),
    }


@pytest.fixture
def own(saved, tmp_path):
    """A copy of a pipeline, to be spoilt."""
    return shutil.copytree(saved["float32"], tmp_path / "own")


def sizes(document):
    return {each["name"]: each["bytes"] for each in document["components"] if each["counted_by"] != "nothing"}


@pytest.mark.parametrize(
    ("name", "options", "told"),
    one_in(
        5,
        [
            ("float32", (), {}),
            ("float32", ("--dtype", "bf16"), {"torch_dtype": torch.bfloat16}),
            ("float16", (), {}),
            ("float16", ("--dtype", "fp16"), {"torch_dtype": torch.float16}),
            ("both", (), {}),
            ("both", ("--dtype", "fp16"), {"torch_dtype": torch.float16, "variant": "fp16"}),
            ("variant", (), {"variant": "fp16"}),
            ("variant", ("--dtype", "fp16"), {"torch_dtype": torch.float16, "variant": "fp16"}),
            ("shards", (), {}),
            ("shards of a variant", (), {"variant": "fp16"}),
        ],
    ),
)
def test_each_component_holds_what_it_does_once_diffusers_has_loaded_it(devctl, saved, name, options, told):
    result = devctl("plan", saved[name], *BOX, *options, "--json")
    assert result.code == 0, result.err
    document = json.loads(result.out)
    jsonschema.validate(document, schema(SCHEMA))
    assert sizes(document) == pipelines.loaded(saved[name], **told)
    assert document["pipeline"]["bytes"] == sum(sizes(document).values())
    asks_for_variant = any('variant="fp16"' in note for note in document["notes"])
    assert asks_for_variant == ("variant" in name)


def test_what_diffusers_keeps_in_float32_is_counted_so(devctl, tmp_path):
    nbytes, dtypes = pipelines.save_kept(tmp_path / "wan", torch.bfloat16)
    assert set(dtypes.values()) == {"torch.bfloat16", "torch.float32"}
    document = json.loads(devctl("plan", tmp_path / "wan", *BOX, "--dtype", "bf16", "--json").out)
    assert sizes(document) == {"transformer": nbytes}
    assert document["components"][0]["dtypes"] == ["bfloat16", "float32"]


def test_the_table_says_what_fits_by_weights_and_that_this_is_not_all(devctl, saved):
    result = devctl("plan", saved["float32"], *BOX)
    assert result.code == 0
    assert result.out.splitlines()[0] == "StableDiffusionPipeline 620 KiB, a pipeline of diffusers"
    assert "pipeline.to(device): the weights fit, on cuda:0, with 1.00 GiB left" in result.out
    assert "enable_model_cpu_offload(): the weights fit" in result.out
    assert "weights which fit do not mean that it runs" in result.err.replace("\n", " ")
    assert f"`devctl plan {saved['float32']}/text_encoder` plans text_encoder by itself" in result.err
    assert devctl("plan", saved["float32"] / "text_encoder", *BOX).code == 0
    assert devctl("plan", saved["float32"] / "model_index.json", *BOX).out == result.out


@pytest.mark.parametrize(
    ("devices", "fit"),
    [
        ("1GiB,cpu=1GiB", {"one device": True, "model offload": True}),
        ("500KiB,cpu=1GiB", {"one device": False, "model offload": True}),
        ("500KiB,cpu=300KiB", None),
        ("200KiB,cpu=1GiB", None),
        ("400KiB,400KiB,cpu=1GiB", {"one device": False, "balanced": True, "model offload": True}),
        ("300KiB,300KiB,cpu=300KiB", None),
        ("cpu=1GiB", {"one device": True}),
        ("cpu=300KiB", None),
    ],
)
def test_each_way_to_run_it_is_judged_by_weights(devctl, saved, devices, fit):
    # 261 KiB of a denoiser, 189 of a text encoder, 171 of a decoder
    result = devctl("plan", saved["float32"], "--devices", devices, "--json")
    if fit is None:
        assert (result.code, result.out) == (3, "")
        assert "unet (UNet2DConditionModel): 261 KiB in float32" in result.err
    else:
        assert {each["way"]: each["fits"] for each in json.loads(result.out)["weights_fit"]} == fit


def test_components_are_dealt_out_as_diffusers_does():
    from diffusers.pipelines.pipeline_loading_utils import _assign_components_to_devices

    for limits, parts in (
        ((100, 90, 80), {"a": 50, "b": 40, "c": 30, "d": 20, "e": 10}),
        ((100, 100), {"a": 60, "b": 60, "c": 30, "d": 30}),
        ((50, 100), {"a": 70, "b": 40}),
    ):
        memory = {Device.gpu(at): limit for at, limit in enumerate(limits)}
        order = dict(sorted(memory.items(), key=lambda item: item[1], reverse=True))
        theirs = _assign_components_to_devices(parts, order)
        budgets = Budgets(devices=tuple(memory.items()), given=True)
        ours = next(fit for fit in ways(parts, budgets) if fit.way is Way.BALANCED)
        assert ours.fits
        assert ours.devices == {name: device for device, names in theirs.items() for name in names}


@pytest.mark.parametrize(
    ("order", "limit", "fits"),
    [
        (None, 60, False),
        (("a", "b"), 60, False),
        (("a", "b"), 70, True),
        ((), 1000, False),
        (("a", "b", "c"), 50, True),
    ],
)
def test_what_stays_while_others_run_is_counted_with_the_largest(order, limit, fits):
    sizes = {"a": 50, "b": 30, "c": 20}
    budgets = Budgets(devices=((Device.gpu(0), limit), (Device.cpu(), 100)), given=True)
    found = next(fit for fit in ways(sizes, budgets, order) if fit.way is Way.MODEL_OFFLOAD)
    assert found.fits is fits
    assert bool(found.why) is not fits


def test_what_diffusers_brings_one_after_another_is_its_own_to_say():
    assert offload_order("StableDiffusionPipeline") == ("text_encoder", "image_encoder", "unet", "vae")
    assert "controlnet" not in (offload_order("StableDiffusionControlNetPipeline") or ("controlnet",))
    for name in ("NoSuchPipeline", "__name__", "__path__", "utils"):
        assert offload_order(name) is None
        assert kept_in_float32(name) is None


def test_without_diffusers_what_it_alone_knows_is_said_to_be_unknown(devctl, saved, monkeypatch):
    monkeypatch.setattr("devctl.models.pipelines.find_spec", lambda _: None)
    result = devctl("plan", saved["float16"], *BOX, "--dtype", "fp16", "--json")
    assert result.code == 0
    document = json.loads(result.out)
    assert any("which modules of unet diffusers keeps in float32 is not known here" in n for n in document["notes"])
    offload = next(each for each in document["weights_fit"] if each["way"] == "model offload")
    assert not offload["fits"]
    assert "it is not known which stay beside the largest" in offload["why"]


@pytest.mark.parametrize(
    "more",
    [
        ("--context-length", 512),
        ("--strategy", "optimal"),
        ("--no-offload",),
        ("--compare",),
        ("--to", "vllm"),
        ("--report", "plan.json"),
        ("--tp", 2),
        ("--model-class", "AutoModel"),
        ("--quantize", "int8"),
        ("--fits-on", "all"),
        ("--what-if",),
        ("--explain",),
    ],
)
def test_what_is_known_of_models_alone_is_refused(devctl, saved, more):
    box = () if "--fits-on" in more else BOX
    result = devctl("plan", saved["float32"], *box, *more)
    assert (result.code, result.out) == (2, "")
    assert f"leave out {more[0]}" in result.err
    assert len(result.err.splitlines()) <= 2


def test_several_hosts_do_not_run_a_pipeline(devctl, saved):
    result = devctl("plan", saved["float32"], "--devices", "a:1GiB;b:1GiB")
    assert (result.code, result.out) == (2, "")
    assert "is a pipeline of diffusers, which is run on one machine" in result.err


def test_what_runs_models_alone_names_what_a_pipeline_is(devctl, saved):
    result = devctl("load", saved["float32"])
    assert (result.code, result.out) == (4, "")
    assert "is a pipeline of diffusers, not a model" in result.err


def test_a_part_of_a_pipeline_is_called_one(devctl, saved):
    for name in ("unet", "unet/config.json", "unet/diffusion_pytorch_model.safetensors"):
        result = devctl("plan", saved["float32"] / name, *BOX)
        assert (result.code, result.out) == (4, ""), name
        assert "UNet2DConditionModel" in result.err
        assert "give the pipeline's folder" in result.err


def test_a_component_that_is_not_there_is_named_and_the_others_are_told(devctl, own):
    shutil.rmtree(own / "unet")
    result = devctl("plan", own, *BOX)
    assert (result.code, result.out) == (4, "")
    assert "unet (UNet2DConditionModel): its weights are not there" in result.err
    assert "text_encoder (CLIPTextModel): 189 KiB in float32" in result.err
    assert f"`devctl plan {own}/text_encoder` plans text_encoder by itself" in result.err


@pytest.mark.parametrize("value", ["UNet", {"diffusers": "UNet2DConditionModel"}, [1, 2]])
def test_a_component_of_which_the_index_says_no_class_is_not_left_out(devctl, own, value):
    index = json.loads((own / "model_index.json").read_text())
    (own / "model_index.json").write_text(json.dumps({**index, "unet": value}))
    result = devctl("plan", own, *BOX)
    assert (result.code, result.out) == (4, "")
    assert f"says {json.dumps(value)} of 'unet'" in result.err


def test_what_a_pipeline_itself_is_told_is_no_component(devctl, own):
    index = json.loads((own / "model_index.json").read_text())
    told = {"layers": [9, 18], "scale": 0.5, "schedule": "linear", "settings": {"a": 1}}
    before = sizes(json.loads(devctl("plan", own, *BOX, "--json").out))
    (own / "model_index.json").write_text(json.dumps({**index, **told}))
    assert sizes(json.loads(devctl("plan", own, *BOX, "--json").out)) == before


def test_what_an_index_lacks_is_said_not_to_be_counted(devctl, own):
    index = json.loads((own / "model_index.json").read_text())
    del index["unet"]
    (own / "model_index.json").write_text(json.dumps(index))
    said = " ".join(devctl("plan", own, *BOX).err.split())
    assert "not counted: unet, which StableDiffusionPipeline needs and its index does not name: is it whole?" in said


def test_a_part_of_transformers_without_weights_is_counted_by_its_config_and_said_so(devctl, own):
    assert "its weights are not there" not in devctl("plan", own, *BOX).err
    (own / "text_encoder" / "model.safetensors").unlink()
    result = devctl("plan", own, *BOX)
    assert result.code == 0
    assert "text_encoder: its weights are not there: counted by its config" in " ".join(result.err.split())


def test_files_of_a_component_that_are_broken_end_in_a_no(devctl, own):
    weights = own / "unet" / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    for data, said in ((whole[:-8], "is cut off"), (whole[:4], "is cut off"), (b"\xff" * 64, "is cut off")):
        weights.write_bytes(data)
        result = devctl("plan", own, *BOX)
        assert (result.code, result.out) == (4, "")
        assert said in result.err
    entry = {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 16]}
    write_safetensors(weights, {"a": entry})
    assert "the weights of unet are corrupt" in devctl("plan", own, *BOX).err
    weights.unlink()
    (own / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"never opened")
    assert "a pickle, which is not opened" in devctl("plan", own, *BOX).err


def test_an_index_of_shards_that_leaves_its_folder_is_refused(devctl, own):
    (own / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    index = own / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    for file, said in (("/etc/passwd", "not in its folder"), ("../vae/x", "not in its folder"), ("gone", "lacks gone")):
        index.write_text(json.dumps({"metadata": {}, "weight_map": {"a": file}}))
        result = devctl("plan", own, *BOX)
        assert (result.code, result.out) == (4, "")
        assert said in result.err


@pytest.mark.parametrize(
    "index",
    [
        "[]",
        "{",
        '{"_class_name": 3}',
        '{"_class_name": "P"}',
        '{"_class_name": "P", "unet": ["diffusers"]}',
        '{"_class_name": "P", "unet": [1, 2]}',
        '{"_class_name": "P", "../unet": ["diffusers", "UNet"]}',
        '{"_class_name": "P", "/etc": ["diffusers", "UNet"]}',
        '{"_class_name": "P", "unet": ["diffusers", "os.system()"]}',
        "[" * 100_000,
        json.dumps({"_class_name": "P", **{f"a{n}": ["diffusers", "U"] for n in range(5000)}}),
    ],
)
def test_an_index_that_can_not_be_meant_ends_in_a_line(devctl, tmp_path, index):
    (tmp_path / "model_index.json").write_text(index)
    result = devctl("plan", tmp_path, *BOX)
    assert (result.code, result.out) == (4, "")
    assert "model_index.json" in result.err
    assert len(result.err.splitlines()) <= 2


def test_a_pipeline_of_nothing_with_weights_is_said_to_be_one(devctl, tmp_path):
    pipelines.write_index(tmp_path, {"scheduler": ["diffusers", "DDIMScheduler"]})
    result = devctl("plan", tmp_path, *BOX)
    assert (result.code, result.out) == (4, "")
    assert "has no component with weights" in result.err


def test_code_that_comes_with_a_pipeline_is_not_run(devctl, own):
    (own / "unet" / "mine.py").write_text(f"open({str(own / 'ran')!r}, 'w')")
    index = json.loads((own / "model_index.json").read_text())
    (own / "model_index.json").write_text(json.dumps({**index, "unet": ["mine", "Mine"]}))
    document = json.loads(devctl("plan", own, *BOX, "--json").out)
    assert sizes(document)["unet"] == 267376
    assert not (own / "ran").exists()


def test_of_a_pipeline_on_the_hub_headers_alone_are_fetched(devctl, saved, tmp_path, monkeypatch):
    here = json.loads(devctl("plan", saved["shards"], *BOX, "--json").out)
    with serve() as hub:
        hub.repos |= {"org/pipeline": saved["shards"], "org/variant": saved["variant"]}
        point_at(hub, tmp_path, monkeypatch)
        result = devctl("plan", "org/pipeline", *BOX, "--json")
        assert result.code == 0, result.err
        assert sizes(json.loads(result.out)) == sizes(here)
        assert len(hub.ranges) >= 8
        of_variant = json.loads(devctl("plan", "org/variant", *BOX, "--dtype", "fp16", "--json").out)
        assert sizes(of_variant) == pipelines.loaded(saved["variant"], torch_dtype=torch.float16, variant="fp16")
        assert {each["variant"] for each in of_variant["components"] if each["bytes"]} == {"fp16"}
