"""``plan --engine vllm``: what fits there, what is said of it, and what is refused."""

import json

import jsonschema
import pytest

import devctl as library
from devctl.errors import RefusedError, UsageError
from tests import quantised
from tests.cli.test_documents import PLAN, schema
from tests.conftest import CONFIGS
from tests.marks import one_in

GIB = 2**30
LLAMA, LLAMA_70B, GEMMA = CONFIGS / "llama-3.1-8b", CONFIGS / "llama-3.1-70b", CONFIGS / "gemma-2-27b"
VLLM = ("--engine", "vllm")


def planned(devctl, *options):
    done = devctl("plan", *options, *VLLM)
    assert done.code == 0, done.err
    document = json.loads(done.out)
    jsonschema.validate(document, schema(PLAN))
    return document, done.err


def refused(devctl, *options, code=3):
    done = devctl("plan", *options, *VLLM)
    assert (done.code, done.out) == (code, ""), done.err
    return done.err


def test_the_pool_is_what_the_share_leaves(devctl):
    document, said = planned(devctl, LLAMA, "--devices", "80GiB", "--context-length", "8192", "--batch-size", "4")
    engine = document["engine"]
    (device,) = engine["devices"]
    assert (engine["name"], engine["release"], engine["utilisation"]) == ("vllm", "0.19.0", 0.9)
    assert (engine["max_num_batched_tokens"], engine["max_num_seqs"]) == (8192, 1024)
    assert device["requested"] == 72 * GIB
    assert device["pool"] == 72 * GIB - device["weights"] - device["activations"] - device["non_torch"]
    assert engine["kv_bytes_per_token"] == 2 * 8 * 128 * 2 * 32
    assert engine["kv_tokens"] == device["pool"] // (16 * 131_072) * 16
    assert engine["max_sequences"] == engine["kv_tokens"] // 8192
    assert document["workload"]["context_length"] == 8192
    assert document["devices"][0]["state"] == 4 * 8192 * 131_072
    assert "holds for: vLLM 0.19.0, --gpu-memory-utilization 0.9" in said


def test_keys_and_values_in_eight_bits_are_twice_the_tokens(devctl):
    tokens = [
        planned(devctl, LLAMA, "--devices", "80GiB", *kept)[0]["engine"]["kv_tokens"]
        for kept in ((), ("--kv-dtype", "fp8"))
    ]
    assert tokens[1] == pytest.approx(2 * tokens[0], rel=1e-3)


def test_a_larger_share_and_fewer_sequences_leave_a_larger_pool(devctl):
    def pool(*options):
        return planned(devctl, LLAMA, "--devices", "80GiB", *options)[0]["engine"]["devices"][0]["pool"]

    plain = pool()
    assert pool("--gpu-memory-utilization", "0.95") == pytest.approx(plain + 4 * GIB, abs=2)
    assert pool("--max-num-seqs", "64") > plain
    assert pool("--max-num-batched-tokens", "32k") < plain


def test_the_flagship_fits_in_transformers_and_not_in_vllm(devctl):
    asked = (LLAMA_70B, "--devices", "2xH100", "--context-length", "32k")
    done = devctl("plan", *asked, "--no-offload")
    assert done.code == 0, done.err
    assert "holds for: transformers' generate" in done.err
    for ranks in ((), ("--tp", "2")):
        said = refused(devctl, *asked, *ranks)
        assert "it does not fit in vLLM" in said
        assert "--gpu-memory-utilization 0.9" in said
        assert "one sequence of 32,768 tokens is asked for" in said
    document, _ = planned(devctl, *asked, "--tp", "2", "--gpu-memory-utilization", "0.95")
    assert document["engine"]["max_sequences"] == 1


def test_what_would_help_is_true(devctl):
    asked = (LLAMA_70B, "--devices", "2xH100", "--tp", "2", "--context-length", "32k")
    lines = [line.strip().removeprefix("- ") for line in refused(devctl, *asked).splitlines() if line.endswith(" fits")]
    assert len(lines) >= 2
    for line in lines:
        option, value, _ = line.split()
        others = asked[:-2] if option == "--context-length" else asked
        planned(devctl, *others, option, value)


def test_a_share_that_leaves_no_room_for_the_graphs_is_refused(devctl):
    said = refused(devctl, LLAMA, "--devices", "80GiB", "--gpu-memory-utilization", "1")
    assert "leave less than 512 MiB of the 80.0 GiB that are all" in said
    said = refused(devctl, LLAMA, "--devices", "80GiB", "--max-memory", "0=40GiB")
    assert "of the 40.0 GiB that are free" in said


def test_without_a_context_it_is_that_of_the_model(devctl):
    document, said = planned(devctl, LLAMA, "--devices", "80GiB")
    assert document["workload"]["context_length"] == 131_072
    assert "--max-model-len 131072" in said
    assert "the model is made for 131072 tokens" in refused(
        devctl, LLAMA, "--devices", "80GiB", "--context-length", "200k"
    )


def test_unequal_boards_get_layers_by_what_their_caches_hold(devctl):
    document, _ = planned(devctl, LLAMA, "--devices", "80GiB,30GiB", "--context-length", "8k")
    first, second = document["stages"]
    assert first["layers"][1] > 2 * (second["layers"][1] - second["layers"][0])
    alike, _ = planned(devctl, LLAMA, "--devices", "2x80GiB", "--context-length", "8k")
    assert [stage["layers"] for stage in alike["stages"]] == [[0, 16], [16, 32]]


def test_two_unequal_hosts_get_two_lines(devctl):
    done = devctl("plan", LLAMA_70B, "--devices", "a:2xH100;b:2xH200", "--tp", "2", "--context-length", "8k", *VLLM,
                  "--to", "vllm")  # fmt: skip
    assert done.code == 0, done.err
    first, second = done.out.splitlines()
    partition, graphs, words = first.split(" ", 2)
    assert graphs == "VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS=0"
    counts = [int(count) for count in partition.removeprefix("VLLM_PP_LAYER_PARTITION=").split(",")]
    assert sum(counts) == 80
    assert counts[0] < counts[1]
    assert "--pipeline-parallel-size 2 --tensor-parallel-size 2 --max-model-len 8192" in words
    assert "--max-num-seqs 1024 --max-num-batched-tokens 8192 --gpu-memory-utilization 0.9" in words
    assert "--kv-cache-memory-bytes" not in words
    assert second.endswith("--headless")
    assert "a/cuda:0 to a/cuda:1" in done.err


def test_every_figure_is_whole_in_80_columns(devctl, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    done = devctl(
        "plan",
        LLAMA_70B,
        "--devices",
        "one-host:2xH100;other-host:2xH200",
        "--tp",
        "2",
        "--context-length",
        "8k",
        *VLLM,
    )
    assert done.code == 0, done.err
    rows = [line for line in done.err.splitlines() if " to " in line and "-host/" in line]
    assert len(rows) == 4
    assert "…" not in done.err
    for row in rows:
        assert row.count("iB") == 5


def test_a_plan_for_vllm_is_exported_from_its_file(devctl, tmp_path):
    file = tmp_path / "plan.json"
    file.write_text(devctl("plan", LLAMA, "--devices", "80GiB", "--context-length", "8k", *VLLM).out)
    line = devctl("export", file, "--to", "vllm").out
    assert "--max-model-len 8192 --max-num-seqs 1024" in line
    document = json.loads(file.read_text())
    document["engine"]["utilisation"] = 7
    file.write_text(json.dumps(document))
    done = devctl("export", file, "--to", "vllm")
    assert (done.code, done.out) == (2, "")
    assert "which is no share" in done.err


def test_a_plan_for_vllm_is_not_loaded_by_transformers(devctl, tmp_path):
    file = tmp_path / "plan.json"
    file.write_text(devctl("plan", LLAMA, "--devices", "80GiB", "--context-length", "8k", *VLLM).out)
    for command in (("load", LLAMA), ("check",), ("plan", LLAMA, "--devices", "80GiB")):
        done = devctl(*command, "--map", file)
        assert (done.code, done.out) == (3, "")
        assert "a plan for vLLM 0.19.0" in done.err
        assert f"`devctl export {file} --to vllm`" in done.err


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--gpu-memory-utilization", "0"), "above 0"),
        (("--gpu-memory-utilization", "1.5"), "at most 1"),
        (("--gpu-memory-utilization", "nan"), "above 0"),
        (("--max-num-seqs", "9000"), "no more than --max-num-batched-tokens, 8192"),
        (("--max-num-seqs", "4", "--batch-size", "5"), "vLLM runs 4 sequences at once"),
        (("--strategy", "optimal"), "leave out --strategy"),
        (("--overhead", "1GiB", "--context-length", "8k"), "leave out --overhead"),
        (("--to", "sglang"), "leave out --to sglang"),
        (("--quantize", "nf4"), "only to fp8"),
        (("--ep", "2"), "--ep is for ranks of --tp"),
    ],
)
def test_what_makes_no_sense_is_refused(devctl, options, why):
    assert why in refused(devctl, LLAMA, "--devices", "80GiB", *options, code=2)


@pytest.mark.parametrize("option", ["--gpu-memory-utilization", "--max-num-batched-tokens", "--max-num-seqs"])
def test_options_of_vllm_are_for_vllm(devctl, option):
    done = devctl("plan", LLAMA, "--devices", "80GiB", option, "1")
    assert (done.code, done.out) == (2, "")
    assert f"leave out {option}" in done.err


def test_ranks_that_heads_do_not_divide_among_are_refused(devctl):
    said = refused(devctl, LLAMA, "--devices", "3x80GiB", "--tp", "3", "--context-length", "8k")
    assert "can't share 32 attention heads out to 3 ranks" in said
    assert "there are none" in refused(devctl, LLAMA, "--devices", "80GiB", "--tp", "2")
    assert "only for NVIDIA's GPUs" in refused(devctl, LLAMA, "--devices", "MI300X")
    assert "there are no experts" in refused(devctl, LLAMA, "--devices", "2x80GiB", "--tp", "2", "--ep", "2")


@pytest.fixture
def quantised_in_blocks(tmp_path):
    """A small Llama whose weights are quantised in blocks of 128, of which a layer's 384 channels are three."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "hidden_size": 256,
        "intermediate_size": 384,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "vocab_size": 512,
        "max_position_embeddings": 512,
        "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_a_block_that_is_quantised_together_is_of_one_rank(devctl, quantised_in_blocks):
    said = refused(devctl, quantised_in_blocks, "--devices", "2x80GiB", "--tp", "2", "--context-length", "64")
    assert "384 channels of a layer, of which 128 are quantised together, out to 2 ranks" in said
    planned(devctl, quantised_in_blocks, "--devices", "80GiB", "--context-length", "64")


@pytest.mark.parametrize("name", one_in(3, ["int4 groups", "float8 channels", "nvfp4"]))
def test_packed_weights_are_counted_packed(devctl, tmp_path, name):
    config = json.loads((LLAMA / "config.json").read_text())
    config["quantization_config"] = quantised.COMPRESSED[name]
    (tmp_path / "config.json").write_text(json.dumps(config))
    document, _ = planned(devctl, tmp_path, "--devices", "80GiB", "--context-length", "8k")
    (device,) = document["engine"]["devices"]
    least = 4.5 if "4" in name else 8.4
    assert least < device["weights"] / GIB < least + 1.3


def test_the_library_answers_the_same():
    plan = library.plan(GEMMA, "80GiB", engine="vllm", context_length=8192, gpu_memory_utilization=0.95)
    assert plan.fits
    assert plan.fit_in.kv_bytes_per_token == 46 * 2 * 16 * 128 * 2
    assert plan.fit_in.max_sequences == 7, "its windows of 4096 save nothing where 8192 are read at once"
    with pytest.raises(RefusedError, match="takes no device_map"):
        plan.to_hf()
    assert not library.plan(GEMMA, "60GiB", engine="vllm", context_length=8192).fits
    with pytest.raises(UsageError, match="gpu_memory_utilization"):
        library.plan(GEMMA, "80GiB", gpu_memory_utilization=0.95)
    with pytest.raises(UsageError, match="engine"):
        library.plan(GEMMA, "80GiB", engine="tgi")


def test_transformers_is_what_is_counted_without_a_word(devctl):
    one, other = (
        devctl("plan", CONFIGS / "tiny-llama", "--devices", "24GiB", *words)
        for words in ((), ("--engine", "transformers"))
    )
    assert (one.out, one.err) == (other.out, other.err)
    assert "holds for: transformers' generate" in one.err


def test_an_architecture_that_vllm_does_not_know_is_refused_in_a_line(devctl):
    said = refused(devctl, CONFIGS / "t5-11b", "--devices", "80GiB", "--context-length", "512")
    assert said == "devctl: vLLM 0.33.0 does not know the architecture T5ForConditionalGeneration\n"
