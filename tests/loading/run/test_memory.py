"""Out of memory: on which device, how much was asked for, what to try, and nothing held."""

import gc
import weakref

import pytest
import torch

from devctl.devices import Device
from devctl.errors import LoadError
from devctl.loading.run import out_of_memory
from devctl.loading.weights.loader import LoadFormat, load
from devctl.models.files.resolve import resolve
from devctl.models.skeleton import read_skeleton

CPU = Device.cpu()
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
    assert out_of_memory.parse(text) == expected
    assert out_of_memory.is_out_of_memory(RuntimeError(text))


def test_what_the_allocator_of_the_cpu_says():
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60, dtype=torch.int8)
    assert out_of_memory.is_out_of_memory(raised.value)
    assert out_of_memory.parse(str(raised.value)) == (CPU, 2**60)


def test_other_errors_are_none_of_memory():
    for error in (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("out of memory")):
        assert not out_of_memory.is_out_of_memory(error)


@pytest.mark.parametrize(
    ("error", "said", "hint"),
    [
        (
            torch.OutOfMemoryError(CUDA),
            "out of memory on cuda:1 while loading: 2.50 GiB more were asked for",
            "10.0 GiB were expected there: plan with less for it, like --max-memory 1=8.00GiB",
        ),
        (
            MemoryError(),
            "out of memory on cpu while loading: MemoryError",
            "5.00 GiB were expected there: plan with less for it, like --max-memory cpu=4.00GiB",
        ),
        (
            RuntimeError("CUDA error: out of memory"),
            "out of memory while loading: CUDA error: out of memory",
            "expected were 10.0 GiB on cuda:1, 5.00 GiB on cpu; plan with a smaller --max-memory",
        ),
    ],
)
def test_out_of_memory_in_our_words(error, said, hint):
    predicted = {Device.gpu(1): 10 * GIB, CPU: 5 * GIB}
    with pytest.raises(LoadError) as raised, out_of_memory.on_device("while loading", predicted):
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
        "  expected were 64.2 KiB on cpu, 145 KiB on disk; plan with a smaller --max-memory\n"
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
        "  209 KiB were expected there: plan with less for it, like --max-memory cpu=167KiB\n"
    )


def test_a_board_that_answers_no_more_hides_no_failure(monkeypatch):
    def broken():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    emptied = []
    monkeypatch.setattr(torch.cuda, "empty_cache", broken)
    monkeypatch.setattr(torch.xpu, "empty_cache", lambda: emptied.append("xpu"))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "empty_cache", lambda: emptied.append("mps"))
    with pytest.raises(LoadError, match="out of memory on cuda:1"), out_of_memory.on_device("while loading", {}):
        raise torch.OutOfMemoryError(CUDA)
    assert emptied == ["xpu", "mps"]


def test_letting_go_begins_no_accelerator(monkeypatch):
    def begun(*_):
        raise AssertionError("a driver was asked")

    for part in (torch.cuda, torch.xpu):
        monkeypatch.setattr(part, "is_available", begun)
        monkeypatch.setattr(part, "_lazy_init", begun)
    out_of_memory.release(ValueError())
