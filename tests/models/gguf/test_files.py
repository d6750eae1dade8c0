"""Which files a MODEL argument means, and what is said of those that are none."""

import shutil

import gguf
import pytest

from devctl.errors import ModelError, UsageError
from devctl.models.gguf.files import gguf_at, read_gguf
from devctl.models.gguf.layout import layout_of
from tests import gguf_files as files


@pytest.fixture
def split(tmp_path):
    (tmp_path / "parts").mkdir()
    return files.write(tmp_path / "parts" / "m.gguf", split=10)


def test_a_file_is_recognised_by_its_name_or_its_first_bytes(tmp_path):
    path = files.write(tmp_path / "m.gguf")
    assert gguf_at(str(path)) == path
    blob = shutil.copy(path, tmp_path / "sha256-0123")
    assert gguf_at(str(blob)) == blob
    (tmp_path / "other.GGUF").write_bytes(b"")
    assert gguf_at(str(tmp_path / "other.GGUF")) is not None
    assert gguf_at(str(tmp_path)) == tmp_path
    for other in ("config.json", "weights.bin"):
        assert gguf_at(str(tmp_path)) == tmp_path
        (tmp_path / other).write_bytes(b"{}")
        assert gguf_at(str(tmp_path / other)) is None
    assert gguf_at(str(tmp_path)) is None  # which transformers loads
    assert gguf_at(str(tmp_path / "none.gguf")) is None
    assert gguf_at("org/name") is None
    assert gguf_at("x\0y") is None


def test_a_file_knows_its_architecture_and_its_quantisation(tmp_path):
    found = read_gguf(files.write(tmp_path / "m.gguf", "qwen3moe", files.MOE, files.tensors(files.MOE, experts=4)))
    assert (found.architecture, found.file_type, found.files) == ("qwen3moe", "Q4_K_M", 1)
    assert found.nbytes == sum(tensor.n_bytes for tensor in gguf.GGUFReader(found.name).tensors)
    assert found.key("block_count") == 4
    assert found.key("no") is None


def test_without_a_file_type_most_bytes_say_it(tmp_path):
    assert read_gguf(files.write(tmp_path / "m.gguf", file_type=None)).file_type == "Q4_K"
    assert read_gguf(files.write(tmp_path / "n.gguf", file_type=999)).file_type == "Q4_K"


def test_parts_are_one_model(split, tmp_path):
    whole = read_gguf(files.write(tmp_path / "m.gguf"))
    for given in (split, split.parent, sorted(split.parent.iterdir())[2]):
        found = read_gguf(given)
        assert (found.name, found.files) == (str(split), 4)
        assert {(t.name, t.nbytes) for t in found.tensors} == {(t.name, t.nbytes) for t in whole.tensors}


def test_parts_that_are_not_there_are_named(split):
    third, fourth = sorted(split.parent.iterdir())[2:]
    fourth.unlink()
    third.unlink()
    with pytest.raises(ModelError, match=r"2 of the 4 parts of .* are not beside it: m-00003-of-00004\.gguf, m-00004"):
        read_gguf(split)
    split.unlink()
    with pytest.raises(
        ModelError, match=r"is a part of a model, whose first, m-00001-of-00004\.gguf, is not beside it"
    ):
        read_gguf(split.parent)


def test_parts_are_found_by_name(split):
    with pytest.raises(ModelError, match="says that it is one of 4 parts, which its name does not"):
        read_gguf(split.rename(split.with_name("m.gguf")))


def test_parts_of_other_models_are_none(split):
    second, third = sorted(split.parent.iterdir())[1:3]
    shutil.copy(third, second)
    with pytest.raises(ModelError, match="is not part 2 of 4: its header says 2 of 4"):
        read_gguf(split)


def test_several_models_in_a_folder_are_named(tmp_path):
    for name in ("m-Q4_K_M", "m-Q8_0"):
        files.write(tmp_path / f"{name}.gguf")
    with pytest.raises(UsageError, match=r"holds 2 models: m-Q4_K_M\.gguf, m-Q8_0\.gguf") as caught:
        read_gguf(tmp_path)
    assert caught.value.hint == f"give one of them, like {tmp_path / 'm-Q4_K_M.gguf'}"


def test_many_models_are_not_all_named(tmp_path):
    for number in range(70):
        (tmp_path / f"{number:02}.gguf").write_bytes(b"")
    with pytest.raises(UsageError, match=r"holds 70 models: 00\.gguf, .*, 05\.gguf and 64 more"):
        read_gguf(tmp_path)


def test_a_projector_is_not_a_second_model(tmp_path):
    clip = files.write(tmp_path / "mmproj-m.gguf", "clip", general={"general.type": "mmproj"})
    with pytest.raises(ModelError, match=r"is a projector \(mmproj\)") as caught:
        read_gguf(clip)
    assert "--mmproj" in caught.value.hint
    path = files.write(tmp_path / "m.gguf")
    found = read_gguf(tmp_path)
    assert found.name == str(path)
    assert found.projector == (clip.name, found.nbytes)


def test_an_adapter_is_no_model(tmp_path):
    path = files.write(tmp_path / "lora.gguf", general={"general.type": "adapter"})
    with pytest.raises(ModelError, match=r"is an adapter \(LoRA\)"):
        read_gguf(path)
    files.write(tmp_path / "other.gguf", general={"general.type": "imatrix"})
    with pytest.raises(ModelError, match=r"has 2 GGUF files, and no model among them: lora\.gguf, other\.gguf"):
        read_gguf(tmp_path)


def test_a_vocabulary_alone_is_no_model(tmp_path):
    with pytest.raises(ModelError, match="has no tensors: it is a vocabulary alone"):
        read_gguf(files.write(tmp_path / "m.gguf", given={}))


# Its parts


def test_the_tree_has_every_byte_once(tmp_path):
    path = files.write(tmp_path / "m.gguf", "gemma3", files.GEMMA3, files.tensors(files.GEMMA3, tied=True))
    layout, reader = layout_of(read_gguf(path)), gguf.GGUFReader(path)
    held = layout.tree.index.held
    by_name = {tensor.name: tensor.n_bytes for tensor in reader.tensors}
    assert held[""] == sum(by_name.values())
    for number, name in enumerate(layout.layers):
        assert held[name] == sum(size for tensor, size in by_name.items() if tensor.startswith(f"blk.{number}."))
    assert len(layout.layers) == 7
    assert (layout.first, layout.last, layout.everywhere) == (("token_embd",), ("output_norm",), ("rope_freqs",))
    assert layout.tied == by_name["token_embd.weight"]
    assert layout.unplaced == ()


def test_an_output_of_its_own_is_not_tied(tmp_path):
    layout = layout_of(read_gguf(files.write(tmp_path / "m.gguf")))
    assert layout.tied == 0
    assert layout.last == ("output_norm", "output")


def test_parts_of_unknown_place_are_told(tmp_path):
    more = {"per_layer_model_proj.weight": files.tensors(files.LLAMA)["output.weight"]}
    layout = layout_of(read_gguf(files.write(tmp_path / "m.gguf", given=files.tensors(files.LLAMA) | more)))
    assert layout.unplaced == ("per_layer_model_proj",)
    assert layout.everywhere == ("rope_freqs", "per_layer_model_proj")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"block_count": 5}, "has 4 layers, and says that it has 5: blk.4 is not there"),
        ({"block_count": 3}, "has 4 layers, and says that it has 3: blk.3 is one more"),
        ({"block_count": 0}, "its block_count is 0"),
        ({"block_count": 2**31}, "its block_count is 2147483648"),
        ({"block_count": [4]}, r"its block_count is \(4,\)"),
    ],
)
def test_layers_are_as_many_as_it_says(tmp_path, changes, said):
    path = files.write(tmp_path / "m.gguf", keys=files.LLAMA | changes, given=files.tensors(files.LLAMA))
    with pytest.raises(ModelError, match=said):
        layout_of(read_gguf(path))


def test_an_encoder_is_not_planned(tmp_path):
    given = files.tensors(files.LLAMA) | {"enc.blk.0.attn_q.weight": files.tensors(files.LLAMA)["output.weight"]}
    with pytest.raises(ModelError, match="has an encoder and a decoder"):
        layout_of(read_gguf(files.write(tmp_path / "m.gguf", "t5", given=given)))
