"""Weights that a config ties and a checkpoint holds apart: what from_pretrained keeps of them is what is planned."""

import json

import pytest
import torch
import transformers as t
from safetensors.torch import load_file, save_file

import devctl as library
from devctl.models.cache import dump_tree, parse_tree
from devctl.models.files.resolve import resolve
from devctl.models.skeleton import Purpose, read_skeleton
from devctl.models.tree import sizes
from devctl.placement.strategy import OF_TRANSFORMERS
from tests.marks import one_in, slow
from tests.upstream import ask, assert_parity

T5_SIZES = {
    "vocab_size": 64,
    "d_model": 16,
    "d_kv": 4,
    "d_ff": 24,
    "num_layers": 2,
    "num_heads": 4,
    "feed_forward_proj": "gated-gelu",
}
FAMILY = {
    "t5": (t.T5ForConditionalGeneration, t.T5Config),
    "mt5": (t.MT5ForConditionalGeneration, t.MT5Config),
    "umt5": (t.UMT5ForConditionalGeneration, t.UMT5Config),
}
EMBEDDING = 64 * 16 * 4


def saved(folder, kind="t5", *, says=False, index=False, pickled=False, **weights):
    """A checkpoint of the family; each of ``weights`` is a tensor beside ``shared``, or a copy of it (None)."""
    torch.manual_seed(0)
    model_class, config_class = FAMILY[kind]
    model = model_class(config_class(**T5_SIZES))
    model.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    for name, value in weights.items():
        tensors[name] = tensors["shared.weight"].clone() if value is None else value
    (folder / "model.safetensors").unlink()
    if pickled:
        torch.save(tensors, folder / "pytorch_model.bin")
    elif index:
        names = sorted(tensors)
        parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
        for file, part in parts.items():
            save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        weight_map = {name: file for file, part in parts.items() for name in part}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    else:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config.pop("tie_word_embeddings", None)
    (folder / "config.json").write_text(json.dumps(config if says is None else config | {"tie_word_embeddings": says}))
    return folder


def held(folder, **options):
    """Bytes of the parameters that from_pretrained has in memory, each once."""
    model = t.AutoModelForSeq2SeqLM.from_pretrained(folder, **options)
    return sum(p.numel() * p.element_size() for p in {p.data_ptr(): p for p in model.parameters()}.values())


def planned(folder, **options):
    return read_skeleton(resolve(str(folder)), **options).tree


def other():
    return torch.randn(64, 16)


@pytest.mark.parametrize("kind", FAMILY)
@pytest.mark.parametrize("form", one_in(3, [{}, {"index": True}, {"pickled": True}]), ids=["whole", "shards", "pickle"])
def test_a_head_that_differs_is_a_weight_of_its_own(tmp_path, kind, form):
    folder = saved(tmp_path, kind, **form, **{"lm_head.weight": other()})
    tree = planned(folder)
    assert tree.index.held[""] == held(folder)
    assert tree.untied == {"lm_head.weight"}
    assert "lm_head.weight and shared.weight are counted as two weights, though tied" in tree.notes[-1]
    assert "the checkpoint has both, which differ" in tree.notes[-1]


@pytest.mark.parametrize("form", [{}, {"index": True}, {"pickled": True}], ids=["whole", "shards", "pickle"])
def test_a_head_that_is_a_copy_is_tied(tmp_path, form):
    folder = saved(tmp_path, **form, **{"lm_head.weight": None, "encoder.embed_tokens.weight": None})
    tree = planned(folder)
    assert tree.index.held[""] == held(folder)
    assert (tree.untied, tree.notes) == (frozenset(), ())


def test_every_weight_that_differs_counts(tmp_path):
    weights = {"lm_head.weight": other(), "encoder.embed_tokens.weight": other(), "decoder.embed_tokens.weight": None}
    folder = saved(tmp_path, **weights)
    tree = planned(folder)
    assert tree.untied == {"lm_head.weight", "encoder.embed_tokens.weight"}
    assert tree.index.held[""] == held(folder)


def test_they_differ_only_if_they_do_in_the_dtype_that_they_are_loaded_in(tmp_path):
    folder = saved(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["shared.weight"] * (1 + 2**-20)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for dtype, apart in (("float32", True), ("bfloat16", False)):
        tree = planned(folder, dtype=dtype)
        assert bool(tree.untied) is apart
        assert tree.index.held[""] == held(folder, dtype=getattr(torch, dtype))


def test_both_count_where_the_file_is_cut_off_behind_its_header(devctl, tmp_path):
    folder = saved(tmp_path, **{"lm_head.weight": None})
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(int.from_bytes(file.read(8), "little") + 8)
    tree = planned(folder)
    assert tree.untied == {"lm_head.weight"}
    assert "which is not known" in tree.notes[-1]
    assert devctl("plan", folder, "--devices", "1GiB").code == 0


def test_a_pickle_that_would_be_read_whole_is_left_alone(tmp_path):
    folder = saved(tmp_path, says=None, pickled=True, **{"lm_head.weight": other()})
    weights = torch.load(folder / "pytorch_model.bin")
    torch.save(weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert planned(folder).untied == frozenset()
    (folder / "config.json").write_text(
        json.dumps(json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": False})
    )
    assert planned(folder).untied == {"lm_head.weight"}


def test_a_target_alone_is_the_source(tmp_path):
    folder = saved(tmp_path, **{"lm_head.weight": other()})
    tensors = load_file(folder / "model.safetensors")
    del tensors["shared.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    tree = planned(folder)
    assert tree.untied == frozenset()
    assert tree.index.held[""] == held(folder)


def test_a_prefix_of_the_checkpoint_is_no_other_weight(tmp_path):
    """GPT-2's checkpoint has no ``transformer.``; a decoder's head is tied there too."""
    config = t.GPT2Config(vocab_size=64, n_embd=16, n_layer=1, n_head=2, n_positions=32)
    t.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights = {name.removeprefix("transformer."): value for name, value in weights.items()}
    weights["lm_head.weight"] = other()
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    tree = planned(tmp_path)
    assert tree.untied == {"lm_head.weight"}
    model = t.GPT2LMHeadModel.from_pretrained(tmp_path)
    parameters = {p.data_ptr(): p.numel() * 4 for p in model.parameters()}
    assert tree.index.held[""] == sum(parameters.values())


@pytest.mark.parametrize("kind", FAMILY)
def test_a_config_that_says_untied_is_counted_so(tmp_path, kind):
    folder = saved(tmp_path, kind, says=False)
    tree = planned(folder / "config.json")
    assert tree.untied == {"lm_head.weight"}
    (note,) = (n for n in tree.notes if "embeddings are not tied" in n)
    assert "lm_head.weight is counted as a weight of its own (4.00 KiB)" in note
    whole = planned(saved(tmp_path, kind, says=True) / "config.json")
    assert whole.untied == frozenset()
    assert tree.index.held[""] == whole.index.held[""] + EMBEDDING


def test_what_is_kept_of_a_tree_knows_of_it(tmp_path):
    tree = planned(saved(tmp_path, **{"lm_head.weight": other()}))
    kept = parse_tree(dump_tree(tree))
    assert kept == tree
    assert kept.index.held == tree.index.held


def test_the_same_config_with_other_weights_is_planned_anew(devctl, tmp_path):
    folder = saved(tmp_path, **{"lm_head.weight": other()})
    first = json.loads(devctl("plan", folder, "--devices", "1GiB", "--json").out)["model"]["bytes"]
    saved(tmp_path, **{"lm_head.weight": None})
    second = json.loads(devctl("plan", folder, "--devices", "1GiB", "--json").out)["model"]["bytes"]
    assert first - second == EMBEDDING


@pytest.mark.parametrize("strategy", one_in(2, OF_TRANSFORMERS))
def test_the_map_is_transformers_which_plans_them_as_tied(tmp_path, strategy):
    folder = saved(tmp_path, **{"lm_head.weight": other(), "encoder.embed_tokens.weight": other()})
    skeleton = read_skeleton(resolve(str(folder)))
    assert len(skeleton.tree.untied) == 2
    total = sizes(skeleton.tree)[""]
    upstream = ask(skeleton)
    for part in (0.5, 0.7, 0.9, 1.2):
        machine = {0: int(part * total * 0.6), 1: int(part * total * 0.5), "cpu": total}
        assert assert_parity(skeleton, upstream, strategy, machine) == "equal"


def test_random_weights_are_tied_as_the_class_says(tmp_path):
    folder = saved(tmp_path, **{"lm_head.weight": other()})
    assert planned(folder, purpose=Purpose.RANDOM).untied == frozenset()


def test_load_proves_what_is_planned(devctl, tmp_path):
    folder = saved(tmp_path / "model", **{"lm_head.weight": other()})
    plan = json.loads(devctl("plan", folder, "--devices", "1GiB", "--json").out)
    planned_bytes = sum(device["used"] for device in plan["devices"])
    (tmp_path / "disk.json").write_text('{"": "disk"}')
    for device_map in ("cpu", tmp_path / "disk.json"):
        done = devctl("load", folder, "--map", device_map, "--json")
        assert done.code == 0, done.err
        report = json.loads(done.out)
        assert report["ok"]
        assert sum(device["measured"] for device in report["devices"]) == planned_bytes


@pytest.mark.parametrize(
    ("strategy", "budgets"),
    one_in(
        4,
        [
            ("auto", "30KiB,30KiB,disk"),
            ("balanced", "10KiB,40KiB,disk"),
            ("sequential", "20KiB,20KiB,20KiB,disk"),
            *(("optimal", each) for each in ("30KiB,30KiB,disk", "10KiB,40KiB,disk", "20KiB,20KiB,20KiB,disk")),
        ],
    ),
)
def test_two_weights_that_are_compared_once_loaded_stay_on_one_device(tmp_path, strategy, budgets):
    """torch compares no tensors on two devices, so that from_pretrained would fail."""
    folder = saved(tmp_path, **{"lm_head.weight": other()})
    plan = library.plan(str(folder), budgets, strategy=strategy)
    where = {plan.placement.device_map.device_of(name) for name in ("lm_head.weight", "shared.weight")}
    assert len(where) == 1
    used = {use.device: use.used for use in plan.placement.devices}
    assert sum(used.values()) == held(folder)


@pytest.mark.parametrize("head", [*slow(None), other()], ids=["equal", "different"])
def test_a_map_that_parts_two_weights_which_are_compared_is_refused_before_it_is_loaded(devctl, tmp_path, head):
    folder, path = saved(tmp_path / "model", **{"lm_head.weight": head}), tmp_path / "map.json"
    device_map = {"shared": "cpu", "encoder": "cpu", "decoder": "cpu", "lm_head": "disk"}
    path.write_text(json.dumps(device_map))
    done = devctl("load", folder, "--map", path)
    assert (done.code, done.out) == (3, "")
    assert "lm_head.weight is on disk and shared.weight on cpu: the checkpoint has both, and transformers" in done.err
    with pytest.raises((RuntimeError, NotImplementedError)):
        t.AutoModelForSeq2SeqLM.from_pretrained(folder, device_map=device_map, offload_folder=tmp_path / "off")
    path.write_text(json.dumps({"shared": 0, "encoder": 0, "decoder": 0, "lm_head": 1}))
    over = devctl("plan", folder, "--devices", "2x1GiB", "--map", path)
    assert over.code == 3
    assert "lm_head.weight is on cuda:1 and shared.weight on cuda:0: the checkpoint has both" in over.err
