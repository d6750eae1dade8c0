"""What can be wrong with weights, memory and disks: one or two lines, an exit code, and nothing left behind."""

import errno
import gc
import json
import os
import pickle
import weakref
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from devctl.devices import Device
from devctl.errors import LoadError, RefusedError, UsageError
from devctl.loading import memory, offload
from devctl.loading.loader import LoadFormat, load
from devctl.models.resolve import resolve
from devctl.models.skeleton import read_skeleton
from devctl.models.tree import sizes
from tests import tiny

CPU, DISK = Device.cpu(), Device.disk()
SHARDS = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"
PICKLE = "pytorch_model.bin"


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """Where temporary folders are made during a test."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


@pytest.fixture
def fails(devctl, temporary, tmp_path):
    """Loads a model on each of three maps, which has to fail in one way: ``fails(folder, 4)`` gives what is said."""

    def check(folder, code):
        said = set()
        before = sorted(path.name for path in folder.iterdir())
        for name, device_map in (
            ("cpu", {"": "cpu"}),
            ("disk", {"": "disk"}),
            ("both", {"": "cpu", "model.layers": "disk"}),
        ):
            path = tmp_path / f"{name}.json"
            path.write_text(json.dumps(device_map))
            done = devctl("load", folder, "--map", path)
            assert done.code == code, done.err
            assert done.out == ""
            assert len(done.err.splitlines()) <= 2
            assert "Traceback" not in done.err
            assert list(temporary.iterdir()) == []
            said.add(done.err.replace(str(folder), "MODEL"))
        assert sorted(path.name for path in folder.iterdir()) == before
        assert len(said) == 1, said
        return said.pop()

    return check


@pytest.fixture
def model(tmp_path):
    return tiny.save("llama", tmp_path / "model")


@pytest.fixture
def sharded(tmp_path):
    model_class, config = tiny.CONFIGS["llama"]()
    torch.manual_seed(0)
    model_class(config).save_pretrained(tmp_path / "model", max_shard_size="50KB")
    return tmp_path / "model"


@pytest.fixture
def pickled(model):
    torch.save(load_file(model / WEIGHTS), model / PICKLE)
    (model / WEIGHTS).unlink()
    return model


def change(folder, how):
    weights = load_file(folder / WEIGHTS)
    how(weights)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def cut(path, keep):
    path.write_bytes(path.read_bytes()[:keep])


# files


@pytest.mark.parametrize("keep", [0, 5, 100, 20_000])
def test_a_file_that_is_cut_off(keep, model, fails):
    cut(model / WEIGHTS, keep)
    said = fails(model, 4)
    assert said.startswith("devctl: MODEL/model.safetensors is cut off")
    assert f"{keep:,} bytes" in said
    assert "download it again" in said


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[:8] + b"x" * 100 + data[108:],
        lambda data: data + b"more",
        lambda data: data.replace(b'"data_offsets":[', b'"data_offsexx":[', 1),
        lambda data: data[:8] + data[8:].replace(b"{", b"[", 1),
    ],
    ids=["not JSON", "too long", "no offsets", "no object"],
)
def test_a_corrupt_file(spoil, model, fails):
    (model / WEIGHTS).write_bytes(spoil((model / WEIGHTS).read_bytes()))
    assert fails(model, 4).startswith("devctl: MODEL/model.safetensors is corrupt")


def test_a_pointer_of_git_lfs(model, fails):
    (model / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 218120\n")
    assert "MODEL/model.safetensors is a pointer of Git LFS" in fails(model, 4)


def test_a_missing_shard(sharded, fails):
    (sharded / "model-00002-of-00005.safetensors").unlink()
    said = fails(sharded, 4)
    assert "MODEL lacks model-00002-of-00005.safetensors, which model.safetensors.index.json names" in said


def test_a_shard_that_is_cut_off(sharded, fails):
    cut(sharded / "model-00002-of-00005.safetensors", 10_000)
    assert "MODEL/model-00002-of-00005.safetensors is cut off" in fails(sharded, 4)


def test_an_index_that_names_a_tensor_where_it_is_not(sharded, fails):
    index = json.loads((sharded / SHARDS).read_text())
    index["weight_map"]["model.norm.weight"] = index["weight_map"]["model.embed_tokens.weight"]
    (sharded / SHARDS).write_text(json.dumps(index))
    said = fails(sharded, 4)
    assert "has no model.norm.weight, which model.safetensors.index.json says it has" in said


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_a_file_that_may_not_be_read(model, fails):
    (model / WEIGHTS).chmod(0)
    assert "cannot read MODEL/model.safetensors: Permission denied" in fails(model, 4)


# names and shapes


def test_names_that_are_not_the_models(model, fails):
    def rename(weights):
        for name in [name for name in weights if ".mlp." in name]:
            weights[f"other.{name}"] = weights.pop(name)

    change(model, rename)
    said = fails(model, 4)
    assert "are not of LlamaForCausalLM: they lack 12 of its tensors (model.layers.0.mlp.down_proj.weight, " in said
    assert "and 9 more), and have 12 that are not of it (other.model.layers.0.mlp.down_proj.weight, " in said


def test_weights_that_are_missing_and_on_disk(devctl, model, temporary, tmp_path):
    change(model, lambda weights: weights.pop("lm_head.weight"))
    (tmp_path / "map.json").write_text('{"model": "cpu", "lm_head": "disk"}')
    done = devctl("load", model, "--map", tmp_path / "map.json")
    assert done.code == 4
    assert "lack lm_head.weight, which the map puts on disk" in done.err
    assert list(temporary.iterdir()) == []
    done = devctl("load", model, "--map", "cpu")
    assert done.code == 0
    assert "not in the checkpoint, so random: lm_head.weight" in done.out


def test_weights_that_are_not_used_are_noted(devctl, model):
    change(model, lambda weights: weights.update(other=torch.ones(2)))
    done = devctl("load", model, "--map", "cpu")
    assert done.code == 0
    assert "note: in the checkpoint, and not of LlamaForCausalLM: other" in done.out


def test_a_class_with_a_head_of_its_own(devctl, checkpoint):
    done = devctl("load", checkpoint("bert"), "--map", "cpu", "--model-class", "BertForSequenceClassification")
    assert done.code == 0
    assert "so random: bert.pooler.dense.bias, bert.pooler.dense.weight, classifier.bias and 1 more" in done.out
    done = devctl("load", checkpoint("bert"), "--map", "cpu", "--model-class", "ViTModel")
    assert done.code == 4


def test_shapes_that_differ(model, fails):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"intermediate_size": 96}))
    said = fails(model, 4)
    assert "do not fit its config: model.layers.0.mlp.down_proj.weight is [32, 64] in the checkpoint and " in said
    assert "[32, 96] in the model and 11 more" in said


@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_the_first_weight_that_is_nan_is_named(where, model, devctl, tmp_path):
    def spoil(weights):
        weights["model.layers.3.mlp.up_proj.weight"][0, 0] = float("nan")
        weights["model.layers.1.mlp.up_proj.weight"][0, 0] = float("inf")

    change(model, spoil)
    (tmp_path / "map.json").write_text(json.dumps({"": "cpu", "model.layers": where}))
    done = devctl("load", model, "--map", tmp_path / "map.json")
    assert done.code == 5
    assert "FAIL NaN or infinite: logits" in done.out
    assert "note: model.layers.1.mlp.up_proj.weight has an infinity among its weights, and so have 1 more" in done.out


def test_outputs_that_overflow_with_finite_weights(model, devctl):
    def enlarge(weights):
        weights["model.norm.weight"] *= 1e38
        weights["lm_head.weight"] *= 1e4

    change(model, enlarge)
    done = devctl("load", model, "--map", "cpu", "--dtype", "float32")
    assert done.code == 5, done.out
    assert "note: every weight is finite" in done.out


# pickles


class Runs:
    """A pickle that runs code as it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_of_pickles_is_loaded(zipped, model, devctl, tmp_path, temporary):
    """Also one without a dtype in its config, and from before pickles were zip archives."""
    config = json.loads((model / "config.json").read_text())
    config.pop("dtype")
    (model / "config.json").write_text(json.dumps(config))
    torch.save(load_file(model / WEIGHTS), model / PICKLE, _use_new_zipfile_serialization=zipped)
    (model / WEIGHTS).unlink()
    (tmp_path / "map.json").write_text('{"": "cpu", "model.layers": "disk"}')
    done = devctl("load", model, "--map", tmp_path / "map.json", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["ok"] is True
    assert list(temporary.iterdir()) == []


def test_a_pickle_that_runs_code_is_refused(pickled, fails, tmp_path):
    torch.save({"x": Runs(tmp_path / "ran")}, pickled / PICKLE)
    said = fails(pickled, 4)
    assert "the pickled weights of MODEL run code to be read (posix.mkdir), which is refused" in said
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("keep", [0, 5_000])
def test_a_pickle_that_is_cut_off(keep, pickled, fails):
    cut(pickled / PICKLE, keep)
    assert f"MODEL/pytorch_model.bin is cut off: {keep:,} bytes" in fails(pickled, 4)


def test_a_pickle_of_something_else(pickled, fails):
    (pickled / PICKLE).write_bytes(pickle.dumps([1, 2], protocol=2))
    assert "the pickled weights of MODEL are corrupt: " in fails(pickled, 4)
    with zipfile.ZipFile(pickled / PICKLE, "w") as archive:
        archive.writestr("x", "y")
    assert "the pickled weights of MODEL are corrupt: " in fails(pickled, 4)


# memory

CUDA = (
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 1 has a total capacity of 79.25 GiB of which 1.75 GiB is free."
)
MPS = (
    "MPS backend out of memory (MPS allocated: 17.95 GB, other allocations: 64.00 MB, max allowed: 18.13 GB). "
    "Tried to allocate 256.00 MB on private pool."
)
GIB = 2**30


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (CUDA, (Device.gpu(1), 5 * GIB // 2)),
        ("HIP out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity", (Device.gpu(0), 20 * 2**20)),
        ("XPU out of memory. Tried to allocate 1.00 GiB. GPU 2 has", (Device.from_str("xpu:2"), GIB)),
        (MPS, (Device.mps(), 256 * 2**20)),
        ("CUDA error: out of memory", (None, None)),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", (None, None)),
    ],
)
def test_what_allocators_say(text, expected):
    assert memory.parse(text) == expected
    assert memory.is_out_of_memory(RuntimeError(text))


def test_what_the_allocator_of_the_cpu_says():
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60, dtype=torch.int8)
    assert memory.is_out_of_memory(raised.value)
    assert memory.parse(str(raised.value)) == (CPU, 2**60)


def test_other_errors_are_none_of_memory():
    for error in (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("out of memory")):
        assert not memory.is_out_of_memory(error)


@pytest.mark.parametrize(
    ("error", "said", "hint"),
    [
        (
            torch.OutOfMemoryError(CUDA),
            "out of memory on cuda:1 while loading: 2.50 GiB more were asked for",
            "the map puts 10.0 GiB there: plan with less for it, like --max-memory 1=8.00GiB",
        ),
        (
            MemoryError(),
            "out of memory on cpu while loading: MemoryError",
            "the map puts 5.00 GiB there: plan with less for it, like --max-memory cpu=4.00GiB",
        ),
        (
            RuntimeError("CUDA error: out of memory"),
            "out of memory while loading: CUDA error: out of memory",
            "the map puts 10.0 GiB on cuda:1, 5.00 GiB on cpu; plan with a smaller --max-memory",
        ),
    ],
)
def test_out_of_memory_in_our_words(error, said, hint):
    predicted = {Device.gpu(1): 10 * GIB, CPU: 5 * GIB}
    with pytest.raises(LoadError) as raised, memory.explained("while loading", predicted):
        raise error
    assert (raised.value.message, raised.value.hint) == (said, hint)


def test_out_of_memory_while_loading(devctl, model, monkeypatch, temporary, tmp_path):
    held = []

    def full(built, *args, **kwargs):
        held.append(weakref.ref(built))
        raise torch.OutOfMemoryError(CUDA)

    monkeypatch.setattr("transformers.core_model_loading.set_param_for_module", full)
    (tmp_path / "map.json").write_text('{"": "cpu", "model.layers": "disk"}')
    done = devctl("load", model, "--map", tmp_path / "map.json")
    assert done.code == 5
    assert done.err == (
        "devctl: out of memory on cuda:1 while loading: 2.50 GiB more were asked for\n"
        "  the map puts 64.2 KiB on cpu, 145 KiB on disk; plan with a smaller --max-memory\n"
    )
    assert list(temporary.iterdir()) == []
    source = resolve(str(model))
    with pytest.raises(LoadError) as raised:
        load(
            source,
            read_skeleton(source),
            {"": CPU},
            load_format=LoadFormat.AUTO,
            folder=None,
            on_progress=lambda _: None,
        )
    assert raised.value.__cause__ is not None
    gc.collect()
    assert held
    assert all(built() is None for built in held), "the exception holds no half-loaded model"


def test_out_of_memory_while_running(devctl, model, monkeypatch):
    def full(*args, **kwargs):
        torch.empty(2**60, dtype=torch.int8)

    monkeypatch.setattr("transformers.models.llama.modeling_llama.LlamaMLP.forward", full)
    done = devctl("load", model, "--map", "cpu")
    assert done.code == 5
    assert done.err == (
        "devctl: out of memory on cpu in the smoke inference: 1048576 TiB more were asked for\n"
        "  the map puts 209 KiB there: plan with less for it, like --max-memory cpu=167KiB\n"
    )


# the offload folder


def to_write(name, folder, device_map, *, random_weights=False):
    source = resolve(str(tiny.save(name, folder) if name else folder))
    skeleton = read_skeleton(source)
    return offload.bytes_to_write(source, skeleton, device_map, random_weights=random_weights), sizes(skeleton.tree)


def test_what_a_safetensors_file_has_is_not_written_again(tmp_path):
    for name in ("llama", "llama-tied", "t5", "bart"):
        assert to_write(name, tmp_path / name, {"": DISK})[0] == 0


def test_random_weights_and_pickles_are_written(pickled):
    written, size = to_write(None, pickled, {"": DISK})
    buffers = size["model.rotary_emb"]
    assert written == size[""] - buffers
    layers = {"": CPU, "model.layers": DISK}
    assert to_write(None, pickled, layers)[0] == size["model.layers"]
    assert to_write(None, pickled, layers, random_weights=True)[0] == size["model.layers"]
    assert to_write(None, pickled, {"": CPU})[0] == 0


def test_experts_that_are_converted_are_written(tmp_path):
    written, size = to_write("mixtral", tmp_path / "mixtral", {"": DISK})
    assert written == sum(size[f"model.layers.{i}.mlp.experts"] for i in range(4)) > 0


@pytest.mark.parametrize("name", ["mixtral", "pickled"])
def test_what_is_predicted_is_what_is_written(name, request, tmp_path):
    folder = request.getfixturevalue("pickled") if name == "pickled" else tiny.save(name, tmp_path / name)
    predicted, _ = to_write(None, folder, {"": DISK})
    source = resolve(str(folder))
    with offload.offload_folder(predicted, tmp_path) as chosen:
        load(
            source,
            read_skeleton(source),
            {"": DISK},
            load_format=LoadFormat.AUTO,
            folder=chosen,
            on_progress=lambda _: None,
        )
        files = list(chosen.iterdir())
        written = sum(tensor.nbytes for path in files for tensor in load_file(path).values())
    assert written == predicted
    assert not chosen.exists()


def test_too_little_space_for_what_is_written_is_said_first(pickled, devctl, monkeypatch, temporary, tmp_path):
    (tmp_path / "map.json").write_text('{"": "cpu", "model.layers": "disk"}')
    monkeypatch.setattr("shutil.disk_usage", lambda _: namedtuple("Usage", "total used free")(2000, 1000, 1000))
    done = devctl("load", pickled, "--map", tmp_path / "map.json")
    assert done.code == 3
    assert "may need 145 KiB, its disk has 0.98 KiB free" in done.err
    assert "--offload-folder" in done.err
    assert list(temporary.iterdir()) == []


def test_a_given_offload_folder_keeps_what_it_had(pickled, devctl, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    ours = folder / "model.layers.0.mlp.up_proj.weight.safetensors"  # what transformers writes
    ours.write_text("mine")
    (tmp_path / "map.json").write_text('{"": "cpu", "model.layers": "disk"}')
    done = devctl("load", pickled, "--map", tmp_path / "map.json", "--offload-folder", folder)
    assert done.code == 0, done.err
    assert list(folder.iterdir()) == [ours]
    assert ours.read_text() == "mine"


def test_an_offload_folder_that_was_made_is_removed(pickled, devctl, tmp_path):
    (tmp_path / "map.json").write_text('{"": "disk"}')
    done = devctl("load", pickled, "--map", tmp_path / "map.json", "--offload-folder", tmp_path / "a" / "b")
    assert done.code == 0, done.err
    assert not (tmp_path / "a").exists()
    (tmp_path / "a").mkdir()
    with pytest.raises(RefusedError), offload.offload_folder(2**60, tmp_path / "a" / "b"):
        pass
    assert list((tmp_path / "a").iterdir()) == []


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_an_offload_folder_that_can_not_be_written_to(number, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    with pytest.raises(UsageError, match=os.strerror(number)), offload.offload_folder(1, tmp_path / "a"):
        pass
    assert not (tmp_path / "a").exists()


def test_a_folder_that_is_read_only(pickled, devctl, tmp_path):
    if Path("/proc/sys").exists():
        (tmp_path / "map.json").write_text('{"": "disk"}')
        done = devctl("load", pickled, "--map", tmp_path / "map.json", "--offload-folder", "/proc/sys")
        assert done.code == 2
        assert "cannot use the offload folder /proc/sys" in done.err
