"""Plans of models that ranks share: what is said of them, and what is refused."""

import json
from dataclasses import replace

import jsonschema
import pytest

import devctl as library
from devctl.errors import RefusedError, UsageError
from devctl.placement.parallel.records import parse_stages
from devctl.placement.parallel.tensor import Ranks, rank_tree
from devctl.planning import parallel
from devctl.planning.parallel import COMMUNICATORS
from tests.cli.test_documents import PLAN, schema
from tests.conftest import CONFIGS
from tests.marks import one_in, slow
from tests.sharded import SHARDED
from tests.trees import tree

GIB = 2**30
TINY, LLAMA = CONFIGS / "tiny-llama", CONFIGS / "llama-3.1-8b"


def planned(devctl, *options):
    done = devctl("plan", *options)
    assert done.code == 0, done.err
    document = json.loads(done.out)
    jsonschema.validate(document, schema(PLAN))
    return document, done.err


def test_a_plan_of_ranks_is_a_document_of_one_stage(devctl):
    document, said = planned(devctl, LLAMA, "--devices", "8xH100", "--tp", "8", "--context-length", "8192")
    stages = parse_stages(document, "the plan")
    assert stages.container == "model.layers"
    (stage,) = stages.stages
    assert stage.layers == (0, 32)
    assert stage.devices == tuple(f"cuda:{n}" for n in range(8))
    assert stages.tensor_parallel == 8
    shared = document["tensor_parallel"]
    assert (shared["size"], shared["expert_parallel"]) == (8, 1)
    assert shared["bytes_per_rank"] == [use["used"] for use in document["devices"]] == [stage.used] * 8
    assert shared["state_per_rank"] == [2**30 // 8] * 8, "a gibibyte of keys and values, an eighth on each"
    assert sum(each["bytes"] for each in shared["sharded"]) == document["model"]["bytes"]
    assert sum(each["on_each"] for each in shared["sharded"]) == stage.used
    assert document["strategy"] is None
    assert document["device_map"] == {"": ",".join(stage.devices)}
    assert "shared by 8 ranks" in said
    assert said.count("cuda:0 to cuda:7") == 1, "equal ranks are one row"
    assert document["devices"][0]["overhead"] == COMMUNICATORS + 720 * 2**20


def test_of_weights_alone_nothing_else_is_counted(devctl):
    document, said = planned(devctl, LLAMA, "--devices", "2xH100", "--tp", "2", "--json")
    assert document["workload"] is None
    assert {use["overhead"] + use["state"] + use["activations"] for use in document["devices"]} == {0}
    assert "KV cache" not in said


def test_ranks_that_differ_have_rows_of_their_own(devctl, small):
    document, said = planned(devctl, small("llama"), "--devices", "4x1GiB", "--tp", "4")
    *first, last = document["tensor_parallel"]["bytes_per_rank"]
    assert len(set(first)) == 1
    assert last < first[0]
    assert [line.split()[0] for line in said.splitlines() if "cuda:" in line] == ["0-2", "3"]


def test_activations_are_of_the_part_and_no_more_than_of_the_whole(devctl):
    options = [TINY, "--context-length", "512", "--batch-size", "2", "--overhead", "0B"]
    of_two, _ = planned(devctl, *options, "--devices", "2xH100", "--tp", "2")
    whole, _ = planned(devctl, *options, "--devices", "H100", "--json")
    (alone,) = (use for use in whole["devices"] if use["device"] == "cuda:0")
    rank = of_two["devices"][0]
    assert rank["state"] * 2 == alone["state"]
    assert alone["activations"] / 2 < rank["activations"] < alone["activations"]
    assert rank["overhead"] == 0


@pytest.mark.parametrize("name", ["phi3", *slow("gpt-oss", "olmo2", "deepseek-v3")])
def test_where_every_rank_keeps_all_keys_and_values_it_is_said(name, devctl, small):
    folder = small(name, intermediate_size=96, moe_intermediate_size=32)
    options = [folder, "--context-length", "64", "--overhead", "0B"]
    of_two, said = planned(devctl, *options, "--devices", "2x1GiB", "--tp", "2")
    whole, _ = planned(devctl, *options, "--devices", "1GiB", "--json")
    assert of_two["devices"][0]["state"] == max(use["state"] for use in whole["devices"])
    assert "every rank keeps the whole KV cache" in " ".join(said.split())


def test_where_sharing_hardly_helps_it_is_said(devctl, small):
    model = small("gpt-oss")
    refused = devctl("plan", model, "--devices", "2x500KiB", "--tp", "2")
    assert (refused.code, refused.out) == (3, "")
    said = " ".join(refused.err.split())
    assert "tensor parallelism hardly helps: a rank holds 697 KiB of 713 KiB, an even share would be 356 KiB" in said
    assert "with --ep 2 a rank would hold 423 KiB" in said
    assert "--ep 2 beside --tp 2 fits" in said
    assert "`devctl load` refuses to run it so: GptOssForCausalLM does not run on ranks that share its layers" in said
    document, _ = planned(devctl, model, "--devices", "2x500KiB", "--tp", "2", "--ep", "2")
    assert any("`devctl load` runs no experts that are spread over ranks" in note for note in document["notes"])
    assert document["tensor_parallel"]["expert_parallel"] == 2
    assert document["tensor_parallel"]["bytes_per_rank"][0] / 1024 == pytest.approx(423, abs=0.5)


@pytest.mark.slow
def test_where_sharing_a_large_model_hardly_helps_it_is_said(devctl):
    refused = devctl("plan", CONFIGS / "gpt-oss-120b", "--devices", "8xH100", "--tp", "8")
    assert refused.code == 3
    assert refused.out == ""
    said = " ".join(refused.err.split())
    assert "tensor parallelism hardly helps: a rank holds 217 GiB of 218 GiB, an even share would be 27.2 GiB" in said
    assert "with --ep 8 a rank would hold 29.7 GiB" in said
    assert "--ep 8 beside --tp 8 fits" in said
    document, _ = planned(devctl, CONFIGS / "gpt-oss-120b", "--devices", "8xH100", "--tp", "8", "--ep", "8")
    assert document["tensor_parallel"]["expert_parallel"] == 8
    assert document["tensor_parallel"]["bytes_per_rank"][0] / GIB == pytest.approx(29.725, abs=0.001)


def test_what_is_on_every_rank_is_said(devctl, small):
    document, said = planned(devctl, small("deepseek-v3"), "--devices", "2x1GiB", "--tp", "2")
    assert document["tensor_parallel"]["bytes_per_rank"][0] / 1024 == pytest.approx(218, abs=0.5)
    assert "an even share would be 163 KiB: 111 KiB are on every rank" in " ".join(said.split())


@pytest.mark.slow
def test_what_is_of_a_large_model_on_every_rank_is_said(devctl):
    document, said = planned(devctl, CONFIGS / "deepseek-v3", "--devices", "8xB300", "--tp", "8")
    assert document["tensor_parallel"]["bytes_per_rank"][0] / GIB == pytest.approx(175.0, abs=0.1)
    assert "an even share would be 156 GiB: 21.5 GiB are on every rank" in " ".join(said.split())


@pytest.mark.parametrize(
    ("name", "options", "said"),
    one_in(
        3,
        [
            ("t5-11b", ["8xH100", "--tp", "8"], "has no plan for tensor parallelism of T5ForConditionalGeneration"),
            ("bert-large", ["2xH100", "--tp", "2"], "has no plan for tensor parallelism of BertForMaskedLM"),
            ("llama-3.1-8b", ["8xH100", "--tp", "3"], "32 attention heads can't be shared out evenly among 3 ranks"),
            ("llama-3.1-8b", ["8xH100", "--tp", "3"], "--tp can be 2, 4 or 8"),
            ("llama-3.1-8b", ["16xH100", "--tp", "16"], "8 key/value heads can't be shared out evenly among 16 ranks"),
            (
                "llama-3.1-8b",
                ["2xH100", "--tp", "2", "--ep", "2"],
                "no plan for expert parallelism of LlamaForCausalLM",
            ),
            (
                "llama-3.1-8b",
                ["2xH100", "--tp", "4"],
                "--tp 4 needs an accelerator for each of 4 ranks, and there are 2",
            ),
            ("llama-3.1-8b", ["cpu=64GiB", "--tp", "2"], "needs an accelerator for each of 2 ranks, and there is none"),
            ("mixtral-8x7b", ["3xH100", "--tp", "3"], "32 attention heads can't be shared out evenly among 3 ranks"),
            ("llama-3.1-8b", ["2xH100", "--tp", "2", "--max-memory", "1=1GiB"], "cuda:1 is given 7.48 GiB"),
            (
                "tiny-llama",
                ["4x5MiB", "--tp", "2", "--context-length", "64", "--overhead", "0B"],
                "--tp 4 fits, on 4 accelerators",
            ),
            *slow(
                ("llama-3.1-405b", ["8xH100", "--tp", "8"], "cuda:0 is given 94.5 GiB"),
                ("gemma-2-27b", ["4x24GiB", "--tp", "2", "--context-length", "4k"], "--tp 4 fits, on 4 accelerators"),
            ),
        ],
    ),
)
def test_what_ranks_cannot_share_is_refused(devctl, name, options, said):
    done = devctl("plan", CONFIGS / name, "--devices", *options)
    assert done.code == 3, done.err
    assert done.out == ""
    assert said in " ".join(done.err.split())


@pytest.mark.parametrize("name", ["olmo2", *slow("deepseek-v3")])
def test_a_padding_token_may_be_in_the_part_of_another_rank(name, devctl, small):
    options = ["--devices", "2x8GiB", "--tp", "2", "--context-length", "64"]
    documents = [planned(devctl, small(name, pad_token_id=token), *options)[0] for token in (0, 128)]
    assert documents[0]["devices"] == documents[1]["devices"]


def test_a_decoder_without_a_plan_is_refused(devctl, checkpoint):
    done = devctl("plan", checkpoint("gpt2"), "--devices", "2x1GiB", "--tp", "2")
    assert done.code == 3
    assert "has no plan for tensor parallelism of GPT2LMHeadModel" in done.err


def test_experts_that_a_kernel_would_not_take_are_refused(devctl, small):
    """90 float32 of an expert, 45 on each of two ranks, are no whole number of 16 bytes."""
    done = devctl("plan", small("mixtral", intermediate_size=24), "--devices", "4x1GiB", "--tp", "4")
    assert done.code == 3
    assert "6 blocks of 4 in the inner size of an expert can't be shared out evenly among 4 ranks" in done.err
    assert "--tp can be 2" in done.err
    planned(devctl, small("mixtral", intermediate_size=24), "--devices", "4x1GiB", "--tp", "4", "--ep", "4")


def test_experts_that_do_not_divide_are_refused(devctl, small):
    done = devctl("plan", small("mixtral", num_local_experts=6), "--devices", "4x1GiB", "--tp", "4", "--ep", "4")
    assert done.code == 3
    assert "6 experts can't be shared out evenly among 4 ranks" in done.err
    assert "--tp and --ep can be 2" in done.err


def test_quantised_weights_are_refused(devctl, small):
    folder = small("llama")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps(config))
    done = devctl("plan", folder, "--devices", "2x1GiB", "--tp", "2")
    assert done.code == 3
    assert "how quantised weights are cut is not known" in done.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--tp", "1"], "--tp 1: it is at least 2"),
        (["--tp", "0"], "--tp 0: it is at least 2"),
        (["--tp", "9999999"], "it is at most 4096"),
        (["--tp", "x"], "--tp: "),
        (["--ep", "2"], "--ep is for ranks of --tp: leave out --ep"),
        (["--tp", "4", "--ep", "2"], "--ep 2: transformers needs as many ranks"),
        (["--tp", "2", "--quantize", "nf4"], "leave out --quantize"),
        (["--tp", "2", "--batch-size", "2"], "without a workload only weights are counted: leave out --batch-size"),
        *(
            (["--tp", "2", *each], f"ranks of --tp share every layer, with nothing offloaded: leave out {each[0]}")
            for each in (
                ["--strategy", "optimal"],
                ["--objective", "latency"],
                ["--explain"],
                ["--svg", "x.svg"],
                ["--html", "x.html"],
                ["--no-offload"],
                ["--no-disk"],
                ["--map", "cpu"],
                ["--target-context", "64"],
                ["--compare"],
                ["--what-if"],
            )
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_makes_no_sense_beside_ranks_is_refused(devctl, options, said):
    done = devctl("plan", LLAMA, "--devices", "4xH100", *options)
    assert done.code == 2
    assert done.out == ""
    assert said in " ".join(done.err.split())


@pytest.mark.slow
def test_the_longest_context_is_of_ranks(devctl, small):
    folder = small("llama", max_position_embeddings=65536)
    document, said = planned(
        devctl, folder, "--devices", "2x1GiB", "--tp", "2", "--overhead", "990MiB", "--max-context"
    )
    most = document["max_context"]
    assert most["optimal"] is None
    assert 0 < most["this_map"] < 65536
    assert f"the most tokens of a sequence: {most['this_map']:,}" in said
    fits = ["plan", folder, "--devices", "2x1GiB", "--tp", "2", "--overhead", "990MiB", "--context-length"]
    assert devctl(*fits, most["this_map"]).code == 0
    assert devctl(*fits, most["this_map"] * 2).code == 3


def test_what_a_machine_may_hold_is_honoured(devctl, small):
    options = [small("llama"), "--tp", "2", "--devices", "3x1GiB"]
    document, said = planned(devctl, *options, "--reserve", "0=1000MiB")
    assert [use["budget"] for use in document["devices"]] == [24 * 2**20, GIB]
    assert "cuda:2 has no rank" in said
    document, _ = planned(devctl, *options, "--visible", "1,2")
    assert len(document["devices"]) == 2


def test_the_report_is_the_document(devctl, small, tmp_path):
    done = devctl("plan", small("llama"), "--devices", "2x1GiB", "--tp", "2", "--report", tmp_path / "plan.json")
    assert (tmp_path / "plan.json").read_text().strip() == done.out.strip()


@pytest.mark.parametrize("command", ["check", "plan"])
def test_one_process_refuses_it_and_says_what_runs_it(devctl, small, tmp_path, command):
    folder = small("llama")
    (tmp_path / "plan.json").write_text(devctl("plan", folder, "--devices", "2x1GiB", "--tp", "2").out)
    folders = [] if command == "check" else [folder]
    done = devctl(command, *folders, "--map", tmp_path / "plan.json")
    assert done.code == 3
    assert done.out == ""
    said = " ".join(done.err.split())
    assert "is a plan for 2 processes, and this is one" in said
    assert f"run it with `devctl load MODEL --map {tmp_path / 'plan.json'} --launch print`" in said
    (tmp_path / "plan.json").write_text('{"": "cuda:0,cuda:1"}')
    assert devctl(command, *folders, "--map", tmp_path / "plan.json").code == 3


def test_a_plan_of_one_process_has_no_ranks(devctl):
    document, _ = planned(devctl, LLAMA, "--devices", "H100", "--json")
    assert not {"layers_in", "stages", "tensor_parallel"} & set(document)


def test_a_kept_model_is_shared_without_torch(devctl, small, tmp_path, monkeypatch):
    """What the plan of the model says is kept with its tree."""
    monkeypatch.setenv("DEVCTL_CACHE_DIR", str(tmp_path))
    options = ["plan", small("qwen3-moe", moe_intermediate_size=32), "--devices", "2x1GiB", "--tp", "2", "--ep", "2"]
    first = devctl(*options)
    monkeypatch.setattr("devctl.planning.building.read", None)
    assert devctl(*options) == first
    assert first.code == 0


def test_as_a_library_it_is_the_same_plan(devctl, small):
    folder = small("mixtral", intermediate_size=64)
    plan = library.plan(folder, "2x4GiB", tp=2, ep=2, context_length=64)
    document, _ = planned(devctl, folder, "--devices", "2x4GiB", "--tp", "2", "--ep", "2", "--context-length", "64")
    assert json.loads(json.dumps(plan.to_document())) == document
    assert plan.tensor_parallel.ranks == Ranks(size=2, experts=2)
    part = rank_tree(plan.tree, plan.tensor_parallel.ranks, 1)
    assert part.index.held[""] == plan.tensor_parallel.bytes_per_rank[1]
    for of_one in (plan.to_hf, lambda: plan.device_map, lambda: library.load(folder, plan)):
        with pytest.raises(RefusedError, match="2 processes"):
            of_one()
    with pytest.raises(UsageError, match=r"^ep is for ranks of tp"):
        library.plan(folder, "2x4GiB", ep=2)
    with pytest.raises(UsageError, match=r"^tp 1: it is at least 2"):
        library.plan(folder, "2x4GiB", tp=1)
    with pytest.raises(RefusedError, match="no plan for tensor parallelism"):
        library.plan(CONFIGS / "t5-11b", "2xH100", tp=2)


def test_a_module_that_is_there_already_is_not_shared():
    model_class, config = SHARDED["llama"]()
    with pytest.raises(RefusedError, match="a module that is there already"):
        library.plan(model_class(config), "2x1GiB", tp=2)


def test_code_that_does_not_run_on_a_part_is_refused(small, monkeypatch):
    def fails(model, sharding, workload):
        if workload.tensor_parallel > 1:
            raise RuntimeError("shape '[1, 11, -1, 16]' is invalid")
        return model

    monkeypatch.setattr("devctl.models.tracing.fake_run.shard", fails)
    for asked in ({"context_length": 64}, {"max_context": True}, {}):
        with pytest.raises(RefusedError, match=r"does not run on the part of it that a rank has: .*is invalid"):
            library.plan(small("llama"), "2x4GiB", tp=2, cache=False, **asked)


def test_where_no_code_can_be_traced_it_is_said(small, monkeypatch):
    def fails(model, sharding, workload):
        raise RuntimeError("no kernel")

    monkeypatch.setattr("devctl.models.tracing.fake_run.shard", fails)
    folder = small("llama")
    plan = library.plan(folder, "2x4GiB", tp=2, cache=False)
    assert "whether the model's code runs on a rank's part is not known" in plan.notes
    plan = library.plan(folder, "2x4GiB", tp=2, cache=False, context_length=64)
    assert [note for note in plan.notes if note.startswith("KV cache and activations are not counted")]


def test_an_unknown_style_is_refused_by_name(small, monkeypatch):
    monkeypatch.setattr("devctl.planning.parallel.CUTS", {"colwise": None})
    with pytest.raises(RefusedError, match="is sharded as 'embedding_rowwise', and what that does is not known") as no:
        library.plan(small("llama"), "2x1GiB", tp=2)
    assert no.value.hint.startswith("leave out --tp")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("LlamaForCausalLM", None),
        ("YoutuForCausalLM", "makes other tokens"),
        ("DogeForCausalLM", "does not run"),
        ("NewForCausalLM", "was not tried"),
    ],
)
def test_what_a_load_refuses_to_run_on_ranks_is_said_of_their_plan(name, told):
    model = replace(tree({"a": {"w": 1}}), class_name=name)
    found = list(parallel.told_of_load(model, Ranks(size=2)))
    assert (not found) if told is None else (told in found[0])


def test_names_that_need_several_lines_have_them(devctl, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    done = devctl("plan", CONFIGS / "mixtral-8x7b", "--devices", "8xH100", "--tp", 8)
    assert "self_attn.q_proj, self_attn.k_proj,\n" + " " * 44 + "self_attn.v_proj\n" in done.err
    assert "␊" not in done.err
