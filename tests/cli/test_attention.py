"""--attn-implementation of plan and load."""

import json

import pytest

import devctl as library
from devctl.errors import LoadError
from devctl.loading.run.attention import require_used
from tests.conftest import CONFIGS
from tests.marks import slow

TINY, LLAMA, OSS, BERT = (CONFIGS / name for name in ("tiny-llama", "llama-3.1-8b", "gpt-oss-120b", "bert-large"))
WORK = ("--context-length", 512)


@pytest.fixture
def named(tmp_path):
    """A config that names flash attention, whose package is not here."""
    config = json.loads((CONFIGS / "tiny-llama" / "config.json").read_text())
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config | {"_attn_implementation": "flash_attention_2", "dtype": "bfloat16"}))
    return path


def planned(done):
    assert done.code == 0, done.err
    return json.loads(done.out)["workload"]["attention"]


@pytest.mark.parametrize(("model", "how"), [(TINY, "sdpa"), *slow((OSS, "eager"))])
def test_a_plan_names_what_transformers_chooses(devctl, model, how):
    done = devctl("plan", model, "--devices", "8xH100", *WORK, "--json")
    assert planned(done) == how
    assert f"run: greedy, attention {how}" in done.err.splitlines()


def test_a_plan_names_what_is_asked_for(devctl):
    done = devctl("plan", TINY, "--devices", "H100", *WORK, "--attn-implementation", "a/kernel", "--json")
    assert planned(done) == "a/kernel"
    assert "note: what a/kernel takes is not known: counted as flash attention" in done.err


def test_a_config_that_names_flash_attention_is_planned_without_its_package(devctl, named):
    assert planned(devctl("plan", named, "--devices", "H100", *WORK, "--json")) == "flash_attention_2"
    assert devctl("plan", named, "--devices", "H100").code == 0


@pytest.mark.parametrize(
    ("model", "devices", "how", "said"),
    [
        (OSS, "8xH100", "sdpa", "--attn-implementation sdpa: GptOssForCausalLM has none, it has eager"),
        (LLAMA, "cpu=99GiB", "flash_attention_2", "flash_attention_2 runs only on GPUs, and there is none"),
        (BERT, "H100", "flash_attention_2", "runs only in float16 and bfloat16, and the model is in float32"),
        (LLAMA, "H100", "fast", "--attn-implementation 'fast' is not one of sdpa, eager"),
    ],
)
def test_what_does_not_run_is_refused(devctl, model, devices, how, said):
    done = devctl("plan", model, "--devices", devices, *WORK, "--attn-implementation", how)
    assert (done.code, done.out) == (2, "")
    assert said in done.err


def test_without_a_workload_it_changes_nothing(devctl):
    done = devctl("plan", LLAMA, "--devices", "H100", "--attn-implementation", "eager")
    assert done.code == 2
    assert "leave out --attn-implementation" in done.err


@pytest.mark.slow
def test_where_eager_attention_is_what_does_not_fit_the_best_other_one_is_told(devctl):
    work = ("--devices", "8xH100,disk", "--context-length", 32768)
    done = devctl("plan", OSS, *work)
    assert done.code == 3
    (line,) = [line for line in done.err.splitlines() if "--attn-implementation" in line]
    assert "--attn-implementation kernels-community/vllm-flash-attn3 fits, by --strategy optimal: 8." in line
    again = devctl("plan", OSS, *work, "--attn-implementation", "kernels-community/vllm-flash-attn3")
    assert again.code == 0


def test_nothing_is_told_of_attention_where_it_is_not_eager(devctl):
    done = devctl("plan", TINY, "--devices", "16MiB", "--overhead", "0B", "--context-length", 2048, "--no-offload")
    assert done.code == 3
    assert "--attn-implementation" not in done.err


@pytest.mark.slow
def test_questions_that_place_many_times_take_it(devctl):
    for question in ("--what-if", "--max-context", "--compare"):
        more = WORK if question == "--compare" else ()
        done = devctl(
            "plan", CONFIGS / "tiny-llama", "--devices", "1GiB", question, *more, "--attn-implementation", "eager"
        )
        assert done.code == 0, done.err


@pytest.mark.slow
def test_the_library_takes_it(thin):
    model = thin("llama-3.1-8b", 2)
    found = [
        library.capacity(model, "6GiB", context_length=2048, attn_implementation=how).max_context
        for how in ("eager", "sdpa")
    ]
    assert found[0] < found[1] / 2
    assert library.plan(model, "H100", context_length=64, attn_implementation="eager").attention == "eager"


def test_a_load_runs_with_it_and_says_so(devctl, checkpoint):
    done = devctl("load", checkpoint("llama"), "--map", "cpu", "--attn-implementation", "eager", "--json")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert report["attention"] == "eager"
    (cpu,) = report["devices"]
    assert cpu["predicted_peak"] == pytest.approx(cpu["peak"], rel=0.02)


def test_a_load_attends_as_the_plan_does(devctl, checkpoint, tmp_path):
    model, plan = checkpoint("llama"), tmp_path / "plan.json"
    work = ("--context-length", 32, "--attn-implementation", "eager")
    assert devctl("plan", model, "--max-memory", "cpu=1GiB", *work, "--report", plan).code == 0
    assert json.loads(devctl("load", model, "--map", plan, "--json").out)["attention"] == "eager"
    other = devctl("load", model, "--map", plan, "--attn-implementation", "sdpa", "--json")
    assert json.loads(other.out)["attention"] == "sdpa"


@pytest.mark.parametrize("how", [7, "fast"])
def test_a_plan_with_an_attention_that_is_none_is_refused(devctl, checkpoint, tmp_path, how):
    model, plan = checkpoint("llama"), tmp_path / "plan.json"
    assert devctl("plan", model, "--max-memory", "cpu=1GiB", "--context-length", 32, "--report", plan).code == 0
    document = json.loads(plan.read_text())
    document["workload"]["attention"] = how
    plan.write_text(json.dumps(document))
    assert devctl("load", model, "--map", plan).code == 2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_load_with_flash_attention_on_a_cpu_is_refused_in_a_line(devctl, checkpoint, dtype):
    done = devctl(
        "load", checkpoint("llama"), "--map", "cpu", "--dtype", dtype, "--attn-implementation", "flash_attention_2"
    )
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("devctl: flash_attention_2 runs only on GPUs")
    assert len(done.err.splitlines()) == 2


@pytest.mark.parametrize(
    ("how", "package"), [("flash_attention_2", "flash-attn"), ("flash_attention_3", "flash-attn-3"), ("a/b", "kernels")]
)
def test_a_package_that_is_missing_is_named(how, package):
    from devctl.errors import ModelError
    from devctl.loading.run.attention import require_package

    with pytest.raises(ModelError, match=f"{how} needs the package {package}"):
        require_package(how)
    require_package("sdpa")


def test_a_model_that_was_loaded_with_another_attention_is_refused(checkpoint):
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint("llama"), attn_implementation="eager")
    assert require_used(model, "eager") == "eager"
    with pytest.raises(LoadError, match="loaded with eager attention, and sdpa is planned"):
        require_used(model, "sdpa")
