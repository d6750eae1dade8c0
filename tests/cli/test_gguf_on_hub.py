"""A repository of GGUF files as MODEL, against a hub on loopback: headers are read by ranges."""

import json

import pytest
from huggingface_hub import constants

import devctl as library
from devctl.models.gguf import header as headers
from devctl.models.gguf import hub as reading
from tests import gguf_files as files
from tests.hub import COMMIT, Fault, point_at, serve
from tests.marks import one_in


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Repositories: of one model, of several, and of one in parts, which are larger than what is read at once."""
    root = tmp_path_factory.mktemp("hub")
    for name in ("one", "several", "parts", "none"):
        (root / name).mkdir()
    files.write(root / "one" / "m.gguf")
    for name in ("m-Q4_K_M", "m-Q8_0", "mmproj-F16"):
        files.write(root / "several" / f"{name}.gguf", "clip" if name.startswith("mmproj") else "llama")
    files.write(root / "parts" / "m.gguf", split=10)
    (root / "none" / "README.md").write_text("nothing")
    return root


@pytest.fixture
def hub(folder, tmp_path, monkeypatch):
    with serve() as hub:
        hub.repos |= {f"org/{name}": folder / name for name in ("one", "several", "parts", "none")}
        hub.repos["org/gated"] = (403, "GatedRepo")
        point_at(hub, tmp_path, monkeypatch)
        yield hub


def test_a_plan_reads_a_header_and_no_file(hub, devctl, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "_BLOCK", 4096)
    monkeypatch.setattr(headers, "_WINDOW", 1024)
    done = devctl("plan", "org/one", "--devices", "2x24GiB", "--context-length", "4k")
    assert done.code == 0
    plan = json.loads(done.out)
    assert (plan["model"]["name"], plan["model"]["revision"]) == ("org/one/m.gguf", COMMIT)
    here = json.loads(devctl("plan", folder / "one", "--devices", "2x24GiB", "--context-length", "4k").out)
    assert plan["devices"] == here["devices"]
    assert "llama-fit-params --hf-repo org/one --hf-file m.gguf --ctx-size 4096" in done.err
    asked = [[int(end) for end in each.removeprefix("bytes=").split("-")] for each in hub.ranges]
    assert len(asked) > 1
    assert max(last for _, last in asked) < headers.read_header(folder / "one" / "m.gguf").first + 4096
    assert not list((tmp_path / "cache").rglob("*.gguf"))


def test_llama_cpp_is_told_the_repository(hub, devctl):
    done = devctl("plan", "org/one", "--devices", "24GiB", "--context-length", "4k", "--to", "llama.cpp")
    assert done.out == (
        "llama-server --hf-repo org/one --hf-file m.gguf --gpu-layers 5 --split-mode none --ctx-size 4096 --parallel 1 "
        "--fit off\n"
    )
    assert f"planned was {COMMIT}" in done.err


def test_one_of_several_is_named_as_llama_cpp_names_it(hub, devctl):
    done = devctl("plan", "org/several", "--devices", "24GiB")
    assert (done.code, done.out) == (2, "")
    assert "org/several holds 2 models: m-Q4_K_M.gguf, m-Q8_0.gguf" in done.err
    assert "org/several:Q4_K_M" in done.err
    done = devctl("plan", "org/several:q8_0", "--devices", "24GiB")
    assert done.code == 0
    assert json.loads(done.out)["model"]["name"] == "org/several/m-Q8_0.gguf"
    assert "mmproj-F16.gguf is not counted" in done.err
    done = devctl("plan", "org/several:Q5_0", "--devices", "24GiB")
    assert done.code == 2
    assert "org/several has no Q5_0 among its GGUF files" in done.err


def test_parts_are_one_model(hub, devctl):
    done = devctl("plan", "org/parts", "--devices", "24GiB", "--revision", "main")
    assert done.code == 0
    assert json.loads(done.out)["model"]["name"] == "org/parts/m-00001-of-00004.gguf"
    assert json.loads(done.out)["model"]["bytes"] == sum(data.nbytes for _, data in files.tensors(files.LLAMA).values())


@pytest.mark.parametrize(
    ("model", "said"),
    one_in(
        2,
        [
            ("org/none", "org/none has no config.json"),
            ("org/none:Q4_K_M", "org/none has no GGUF file"),
            ("org/gated:Q4_K_M", "org/gated is gated"),
            ("org/nobody:Q4_K_M", "org/nobody is neither a file or folder here nor a model on the hub"),
        ],
    ),
)
def test_what_is_not_there_ends_in_a_line_or_two(hub, devctl, model, said):
    done = devctl("plan", model)
    assert (done.code, done.out) == (4, "")
    assert said in done.err
    assert len(done.err.splitlines()) <= 2


@pytest.mark.parametrize("fault", [Fault(status=500), Fault(keep=100), Fault(facts={"Content_Range": "bytes 7-9/12"})])
def test_a_hub_that_fails_ends_in_a_line_or_two(hub, devctl, fault):
    hub.faults["m.gguf"] = fault
    done = devctl("plan", "org/one", "--devices", "24GiB")
    assert (done.code, done.out) == (4, "")
    assert "m.gguf" in done.err
    assert len(done.err.splitlines()) <= 2


def test_a_hub_that_sends_whole_files_is_refused(hub, devctl, monkeypatch):
    monkeypatch.setattr(reading, "_BLOCK", 4096)
    hub.faults["m.gguf"] = Fault(facts={"Content_Range": "none"})
    done = devctl("plan", "org/one", "--devices", "24GiB")
    assert done.code == 4
    assert "the hub does not send parts of m.gguf of org/one" in done.err


def test_offline_nothing_is_asked(hub, devctl, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    done = devctl("plan", "org/one:Q4_K_M")
    assert done.code == 4
    assert "HF_HUB_OFFLINE=1 forbids it" in done.err
    assert not hub.requests


def test_options_of_transformers_are_refused_all_the_same(hub, devctl):
    for options in (["--compare"], ["--explain"], ["--no-disk"], ["--new-tokens", "2", "--context-length", "64"]):
        done = devctl("plan", "org/one", "--devices", "24GiB", *options)
        assert (done.code, done.out) == (2, "")
        assert f"leave out {options[0]}" in done.err
    with pytest.raises(library.UsageError, match="leave out disk=False"):
        library.plan("org/one", "24GiB", disk=False)


def test_a_program_asks_the_same(hub):
    plan = library.plan("org/several:Q4_K_M", "24GiB", context_length=1024)
    assert plan.fits
    assert plan.model.revision == COMMIT
