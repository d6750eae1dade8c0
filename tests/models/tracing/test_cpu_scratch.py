"""What flash attention takes on a CPU, by the rule and by torch's allocator, on whatever CPU this is."""

import json
import os
import subprocess
import sys

import pytest
import torch

from devctl.loading.run.allocations import counted
from devctl.models.tracing.cpu_scratch import of_flash_attention, of_product, packs, processor

SHAPES = [(5, 5, 64), (100, 100, 8), (300, 300, 64), (900, 900, 32), (1, 700, 64), (77, 77, 7), (1100, 1100, 9)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ATTENTION = torch.nn.functional.scaled_dot_product_attention


def differences():
    """Bytes that were allocated for each case, less the predicted."""
    found = {}
    for dtype in DTYPES:
        for length, keys, size in SHAPES:
            for is_causal in (False, True):
                for heads in (4, 1):
                    query = torch.randn(2, 4, length, size, dtype=dtype)
                    key = torch.randn(2, heads, keys, size, dtype=dtype)
                    with torch.inference_mode():
                        out, most = counted(
                            lambda q=query, k=key, c=is_causal: ATTENTION(q, k, k, is_causal=c, enable_gqa=True)
                        )
                    sums = 2 * 4 * length * 4
                    foretold = of_flash_attention(query, key, key, 0.0, is_causal)
                    found[f"{dtype} {length}x{keys}x{size} {heads} {is_causal}"] = most - out.nbytes - sums - foretold
    return found


def told_by_a_process(**environment):
    """What `differences` finds, and whether oneDNN packs there, in a process of its own."""
    code = (
        "import json, torch; from tests.models.tracing.test_cpu_scratch import differences; "
        "from devctl.models.tracing.cpu_scratch import packs; "
        "print(json.dumps([differences(), packs(torch.bfloat16)]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, **environment}
    )
    return json.loads(done.stdout)


def test_it_is_what_the_allocator_gives_out():
    assert {case: by for case, by in differences().items() if by} == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    "environment",
    [{"ONEDNN_MAX_CPU_ISA": "ALL"}, {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}, {"DNNL_MAX_CPU_ISA": "avx512_core_bf16"}],
    ids=str,
)
@pytest.mark.parametrize("threads", ["1", "3"])
def test_it_is_so_under_a_limit_and_with_any_threads(environment, threads):
    found, packed = told_by_a_process(**environment, OMP_NUM_THREADS=threads)
    assert {case: by for case, by in found.items() if by} == {}
    assert not packed or environment == {"ONEDNN_MAX_CPU_ISA": "ALL"}


@pytest.mark.parametrize(
    ("threads", "packed", "nbytes"),
    [(1, False, 448_896), (8, False, 1_373_568), (1, True, 1_101_696), (8, True, 2_295_168)],
)
def test_both_ways_as_measured_with_and_without_amx(threads, packed, nbytes):
    query = torch.empty(2, 4, 300, 64, dtype=torch.bfloat16, device="meta")
    beside = 2 * 4 * 300 * 64 * 2 + 2 * 4 * 300 * 4  # the output and a float32 of each row
    assert beside + of_flash_attention(query, query, query, threads=threads, packed=packed) == nbytes


def test_packing_never_takes_less():
    for dtype in DTYPES:
        for length, keys, size in SHAPES:
            query, key = (torch.empty(2, 4, n, size, dtype=dtype, device="meta") for n in (length, keys))
            with_pack, without = (of_flash_attention(query, key, key, packed=way) for way in (True, False))
            assert with_pack >= without


@pytest.mark.parametrize(
    ("limit", "of_bfloat16", "of_float16"),
    [
        (None, True, True),
        ("", True, True),
        ("ALL", True, True),
        ("AVX512_CORE_AMX", True, False),
        ("avx512_core_amx_fp16", True, True),
        ("AVX10_1_512", False, False),
        ("AVX512_CORE", False, False),
        ("nonsense", True, True),
    ],
)
def test_the_limit_of_the_instruction_set(monkeypatch, limit, of_bfloat16, of_float16):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_amx_fp16_supported", lambda: True)
    monkeypatch.setattr(torch._C, "_has_mkldnn", True)
    monkeypatch.setattr(torch._C, "_get_mkldnn_enabled", lambda: True)
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    if limit is not None:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert packs(torch.bfloat16) is of_bfloat16
    assert packs(torch.float16) is of_float16
    assert not packs(torch.float32)
    monkeypatch.setattr(torch._C, "_get_mkldnn_enabled", lambda: False)
    assert not packs(torch.bfloat16)


def test_a_footprint_is_kept_for_such_a_processor(monkeypatch):
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    before = processor()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert processor() != before


PRODUCTS = [(1, 512, 1024), (8, 1024, 512), (64, 512, 1024), (256, 512, 1024), (8, 2048, 2048), (512, 1024, 1024)]


def products():
    """Bytes that were allocated for each product of a plain weight, less the bound."""
    found = {}
    for dtype in DTYPES:
        for rows, inner, columns in PRODUCTS:
            given, weight = torch.randn(rows, inner).to(dtype), torch.randn(columns, inner).to(dtype)
            with torch.inference_mode():
                out, most = counted(lambda g=given, w=weight: torch.nn.functional.linear(g, w))
            found[f"{dtype} {rows}x{inner}x{columns}"] = (
                most - out.nbytes - of_product(dtype, rows, inner, columns, packed=True)
            )
    return found


def test_a_product_takes_no_more_than_its_bound():
    assert {case: by for case, by in products().items() if by > 0} == {}


@pytest.fixture
def amx(monkeypatch):
    """A processor with everything, and one thread."""
    for name in ("_is_avx512_supported", "_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: True)
    monkeypatch.setattr(torch._C, "_has_mkldnn", True)
    monkeypatch.setattr(torch._C, "_get_mkldnn_enabled", lambda: True)
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)


def test_an_experts_weights_are_packed_where_there_is_amx(amx, monkeypatch):
    blocks = 2 * (3 * 65_536 + 1024 + 256 * 8)  # of two threads
    assert of_product(torch.bfloat16, 8, 512, 1000, packed=True, threads=2) == blocks + 2 * 512 * 1024
    assert of_product(torch.bfloat16, 8, 512, 1000, threads=2) == blocks
    assert of_product(torch.float32, 8, 512, 1000, packed=True, threads=2) == 0
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
    assert of_product(torch.bfloat16, 8, 512, 1000, packed=True, threads=2) == blocks
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE")
    assert of_product(torch.bfloat16, 8, 512, 1000, packed=True, threads=2) == 4 * 8 * 1000 + 256
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert of_product(torch.bfloat16, 8, 512, 1000, packed=True, threads=2) == 0


def test_experts_on_a_cpu_with_amx_are_given_room_for_packed_weights(amx):
    import tempfile

    import transformers

    from devctl.models.files.resolve import resolve
    from devctl.models.footprint import Kernels, Workload, peak_bytes
    from devctl.models.skeleton import read_skeleton
    from devctl.models.tracing.trace import trace_footprint

    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_local_experts": 4, "num_hidden_layers": 2}
    config = transformers.MixtralConfig(**sizes, vocab_size=64, num_attention_heads=4, num_key_value_heads=2)
    config.architectures = ["MixtralForCausalLM"]
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        skeleton = read_skeleton(resolve(folder), dtype="bfloat16")
    found = {kernels: trace_footprint(skeleton, Workload(context_length=12, kernels=kernels)) for kernels in Kernels}
    both = 2 * 512 * 256 * 2  # gate and up of an expert
    assert peak_bytes(found[Kernels.CPU]) > both
    assert any("is a bound" in note for note in found[Kernels.CPU].notes)
    assert found[Kernels.ACCELERATOR].exact
