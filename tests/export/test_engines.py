"""Lines by rules that were read in the engines' sources, and refusals of what they would take and get wrong."""

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devctl.errors import RefusedError, UsageError
from devctl.export import llama_cpp
from devctl.export.engines import ENGINES, export
from devctl.export.records import Unsayable
from devctl.placement.engines.records import Serving
from tests.export.plans import plan, stages

TWO_HOSTS = stages(20, 60, hosts=("a", "b"))


def lines(engine, what):
    return [command.line for command in export(what, engine).commands]


def test_vllm_over_the_gpus_of_one_machine():
    assert lines("vllm", plan(stages(20, 60))) == [
        "VLLM_PP_LAYER_PARTITION=20,60 vllm serve org/model --dtype bfloat16 --pipeline-parallel-size 2 "
        "--max-model-len 4096 --max-num-seqs 2 --kv-cache-memory-bytes 6036"
    ]


def test_vllm_on_one_gpu_is_given_no_partition():
    """It refuses the variable where there is one stage."""
    (line,) = lines("vllm", plan(stages(32), revision="abc", kv_dtype="float8_e5m2"))
    assert line == (
        "vllm serve org/model --revision abc --dtype bfloat16 --max-model-len 4096 --max-num-seqs 2 "
        "--kv-cache-memory-bytes 3219 --kv-cache-dtype fp8_e5m2"
    )


def test_a_plan_for_vllm_is_started_with_what_it_counts_with():
    serving = Serving(utilisation=0.95, batched_tokens=4096, sequences=64)
    assert lines("vllm", plan(stages(32), serving=serving)) == [
        "VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS=0 vllm serve org/model --dtype bfloat16 --max-model-len 4096 "
        "--max-num-seqs 64 --max-num-batched-tokens 4096 "
        "--gpu-memory-utilization 0.95"
    ]
    more = Serving(
        utilisation=0.9, batched_tokens=8192, sequences=1, expert_parallel=True, quantised_while_loading=True
    )
    (line,) = lines("vllm", plan(stages(32, tp=2), serving=more, quantisation="fp8"))
    assert line.endswith("--gpu-memory-utilization 0.9 --enable-expert-parallel --quantization fp8")
    assert "--dtype bfloat16" in line, "which its weights are quantised from"
    for other in ("sglang", "llama.cpp"):
        with pytest.raises(RefusedError, match="for vLLM"):
            export(plan(stages(32), serving=serving), other)


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_an_architecture_that_an_engine_does_not_know_is_refused(engine):
    with pytest.raises(RefusedError) as caught:
        export(plan(stages(32), class_name="NobodyForCausalLM"), engine)
    (why,) = caught.value.findings
    assert why.endswith("does not know the architecture NobodyForCausalLM")
    for known in ("LlamaForCausalLM", "Kimi_K25ForConditionalGeneration"):
        assert lines(engine, plan(stages(32), class_name=known)) == lines(engine, plan(stages(32)))


def test_vllm_over_hosts():
    first, second = lines("vllm", plan(TWO_HOSTS))
    shared = " --distributed-executor-backend mp --nnodes 2 --node-rank {} --master-addr a --master-port 29501"
    assert first.endswith(shared.format(0))
    assert second.endswith(shared.format(1) + " --headless")
    assert first.startswith("VLLM_PP_LAYER_PARTITION=20,60 vllm serve org/model ")
    assert [c.host for c in export(plan(TWO_HOSTS), "vllm").commands] == ["a", "b"]
    (only,) = export(plan(TWO_HOSTS), "vllm", host="b").commands
    assert only.line == second


def test_a_cache_is_of_whole_pages_and_of_the_stage_that_needs_most():
    """Of 16 tokens: one more for each sequence, as windows take it, and the one that vLLM gives to none."""
    line = lines("vllm", plan(stages(1, 3, states=[17 * 7, 17 * 9]), context_length=17, batch_size=1))[0]
    assert f"--kv-cache-memory-bytes {(32 + 16 + 16) * 9}" in line


def test_a_cache_whose_layers_keep_unlike_ones_is_left_to_vllm():
    (command,), notes = (found := export(plan(stages(4), kept_alike=False), "vllm")).commands, found.notes
    assert "--kv-cache-memory-bytes" not in command.line
    assert "--max-model-len 4096 --max-num-seqs 2" in command.line
    assert "vLLM pages by rules of its own" in notes[0]
    assert not export(plan(stages(4), kept_alike=False, context_length=None), "vllm").notes[1:]


def test_sglang_over_hosts():
    first, second = lines("sglang", plan(TWO_HOSTS))
    assert first == (
        "SGLANG_PP_LAYER_PARTITION=20,60 python -m sglang.launch_server --model-path org/model --dtype bfloat16 "
        "--pp-size 2 --context-length 4096 --max-running-requests 2 --max-total-tokens 8192 --nnodes 2 --node-rank 0 "
        "--dist-init-addr a:25000"
    )
    assert second == first.replace("--node-rank 0", "--node-rank 1")


def test_tensor_parallel_groups():
    shared = plan(stages(32, tp=4))
    assert "--tensor-parallel-size 4" in lines("vllm", shared)[0]
    assert "--tp-size 4" in lines("sglang", shared)[0]
    assert "PARTITION" not in lines("vllm", shared)[0] + lines("sglang", shared)[0]


def test_llama_cpp_counts_the_output_as_a_layer_of_the_last_device():
    assert lines("llama.cpp", plan(stages(2, 4))) == [
        "llama-server --model model.gguf --gpu-layers 7 --split-mode layer --tensor-split 2,5 --ctx-size 8192 "
        "--parallel 2 --fit off"
    ]


@pytest.mark.parametrize(
    ("device", "before", "told"),
    [
        ("cuda:0", "", "--split-mode none"),
        ("cuda:2", "CUDA_VISIBLE_DEVICES=2 ", "--split-mode none"),
        ("xpu:0", "", "--split-mode none"),
        ("xpu:1", "", "--split-mode none --main-gpu 1"),
        ("mps", "", "--split-mode none"),
    ],
)
@pytest.mark.parametrize("dtype", ["bfloat16", llama_cpp.GGUF])
def test_llama_cpp_takes_no_gpu_but_the_plans_only_one(device, before, told, dtype):
    """By itself it spreads the layers over every one that it sees."""
    assert lines("llama.cpp", plan(stages(6, devices=((device,),)), dtype=dtype)) == [
        f"{before}llama-server --model model.gguf --gpu-layers 7 {told} --ctx-size 8192 --parallel 2 --fit off"
    ]


def test_llama_cpp_with_a_part_on_the_cpu_takes_one_gpu_all_the_same():
    (line,) = lines("llama.cpp", plan(stages(24, devices=(("cuda:1",),)), layers=32, on_cpu=(0, 8), cpu_bytes=800))
    assert line.startswith("CUDA_VISIBLE_DEVICES=1 llama-server --model model.gguf --gpu-layers 25 --split-mode none ")


def test_a_host_of_llama_cpp_offers_no_gpu_that_the_plan_does_not_have():
    """rpc-server offers all that it sees, before the server's own: the split's numbers would be for others."""
    devices = (("cuda:0",), ("cuda:1",), ("cuda:3",))
    one, other = export(plan(stages(8, 8, 8, hosts=("a", "a", "b"), devices=devices)), "llama.cpp").commands
    assert one.environment == {"CUDA_VISIBLE_DEVICES": "0,1"}
    assert other.environment == {"CUDA_VISIBLE_DEVICES": "3"}
    alone = lines("llama.cpp", plan(stages(8, 8)))
    assert "CUDA_VISIBLE_DEVICES" not in alone[0], "what is behind the split's numbers has nothing of it"


def test_llama_cpp_over_hosts_serves_where_the_last_layers_are():
    worker, server = export(plan(TWO_HOSTS), "llama.cpp").commands
    assert (worker.host, worker.line) == ("a", "CUDA_VISIBLE_DEVICES=0 rpc-server --host 0.0.0.0 --port 50052")
    assert server.host == "b"
    assert "--tensor-split 20,61" in server.line
    assert server.line.endswith("--fit off --rpc a:50052")


def test_llama_cpp_leaves_the_first_layers_on_the_cpu_and_no_others():
    first = plan(stages(20, 4), layers=32, on_cpu=(0, 8), cpu_bytes=800)
    assert "--gpu-layers 25 " in lines("llama.cpp", first)[0]
    last = plan(stages(20, 4), layers=32, on_cpu=(24, 32), cpu_bytes=800)
    with pytest.raises(RefusedError) as caught:
        export(last, "llama.cpp")
    assert caught.value.findings == (
        "llama.cpp leaves the first layers on the CPU (--gpu-layers), and the plan layers 24 to 31",
    )


@given(st.lists(st.integers(1, 40), min_size=1, max_size=llama_cpp.MOST_DEVICES), st.integers(0, 9))
def test_llama_cpp_puts_every_layer_where_the_plan_has_it(counts, on_cpu):
    layers = on_cpu + sum(counts)
    wanted = [None] * on_cpu + [device for device, count in enumerate(counts) for _ in range(count)]
    split = llama_cpp.tensor_split(tuple(counts))
    gpu_layers = layers + 1 - on_cpu
    assert [llama_cpp.device_of(at, layers, gpu_layers, split) for at in range(layers)] == wanted
    assert llama_cpp.device_of(layers, layers, gpu_layers, split) == len(counts) - 1


def test_without_the_output_layers_would_be_elsewhere():
    assert [llama_cpp.device_of(at, 6, 7, (2, 4)) for at in range(6)] == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("engine", ENGINES)
def test_boards_that_an_engine_would_take_in_another_order_are_put_in_the_plans(engine):
    (command,) = export(plan(stages(9, 23, devices=(("cuda:1",), ("cuda:0",)))), engine).commands
    assert command.environment["CUDA_VISIBLE_DEVICES"] == "1,0"
    (command,) = export(plan(stages(9, 23)), engine).commands
    assert "CUDA_VISIBLE_DEVICES" not in command.environment


@pytest.mark.parametrize("engine", ENGINES)
def test_what_a_shell_would_read_is_quoted(engine):
    name = "my models/a'b;$(touch x)"
    (command,) = export(plan(stages(4, 4), model=name), engine).commands
    words = [word for word in shlex.split(command.line) if "=" not in word]
    assert tuple(words) == command.words
    assert any(name.rpartition("/")[2] in word for word in words)


@pytest.mark.parametrize(
    ("engine", "changed", "why"),
    [
        ("vllm", {"stages": stages(8, 8, 8, hosts=("a", "a", "b"))}, "unequal ones: a 2, b 1"),
        ("sglang", {"stages": stages(8, 8, 8, hosts=("a", "a", "b"))}, "unequal ones: a 2, b 1"),
        ("vllm", {"kv_dtype": "int8"}, "no --kv-cache-dtype for int8"),
        ("sglang", {"kv_dtype": "int8"}, "no --kv-cache-dtype for int8"),
        ("llama.cpp", {"kv_dtype": "float8_e5m2"}, "no cache type for float8_e5m2"),
        ("vllm", {"dtype": "float64"}, "no --dtype float64"),
        ("vllm", {"on_cpu": (0, 2), "cpu_bytes": 7}, "on every GPU"),
        ("sglang", {"on_cpu": (0, 2), "cpu_bytes": 7}, "on every GPU"),
        ("vllm", {"stages": stages(8), "on_cpu": (0, 2)}, "give the plan document"),
        ("llama.cpp", {"stages": stages(8, tp=2)}, "another plan"),
        ("llama.cpp", {"stages": stages(*[1] * 16)}, "15 devices at most, and the plan has 16"),
        ("llama.cpp", {"stages": stages(8, 8, devices=(("xpu:1",), ("xpu:2",)))}, "the plan has xpu:1, xpu:2"),
        (
            "llama.cpp",
            {"stages": stages(8, 8, devices=(("xpu:1",), ("xpu:0",)), hosts=("a", "b"))},
            "and the plan has xpu:1 on a",
        ),
        ("vllm", {"stages": stages(8, devices=(("xpu:0",),))}, "cuda devices only"),
        ("sglang", {"stages": stages(8, devices=(("mps",),))}, "cuda devices only"),
    ],
)
def test_what_an_engine_can_not_run_is_refused(engine, changed, why):
    with pytest.raises(RefusedError, match=f"^{engine} can't run this plan as it is") as caught:
        export(plan(stages(8, 8), **changed), engine)
    assert any(why in reason for reason in caught.value.findings)


def test_every_reason_is_told():
    wrong = plan(stages(8, 8), kv_dtype="int8", dtype="float64", on_cpu=(0, 1), cpu_bytes=3)
    with pytest.raises(RefusedError) as caught:
        export(wrong, "vllm")
    assert len(caught.value.findings) == 3


def test_what_is_offloaded_from_one_gpu():
    offloaded = plan(stages(24), layers=32, on_cpu=(24, 32), cpu_bytes=5 * 2**30 + 1)
    assert "--cpu-offload-gb 5.01" in lines("vllm", offloaded)[0]
    assert "--cpu-offload-gb 6" in lines("sglang", offloaded)[0]


def test_an_engine_or_a_host_that_is_none_is_wrong_usage():
    with pytest.raises(UsageError, match=r"not one of vllm, sglang, llama\.cpp"):
        export(plan(stages(8)), "tgi")
    with pytest.raises(UsageError, match="the plan's hosts are a, b"):
        export(plan(TWO_HOSTS), "vllm", host="c")
    with pytest.raises(UsageError, match="it is for one machine"):
        export(plan(stages(8)), "vllm", host="c")
    with pytest.raises(RefusedError):
        export(Unsayable(("why",)), "vllm")
