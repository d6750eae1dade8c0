"""devctl as a library: the same answers as the command line's, as frozen values."""

import inspect
import json
import re
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import devctl
from devctl.inventory import Accelerator, Host, Inventory
from devctl.planning.progress import reporting
from devctl.planning.request import MachineRequest, ModelRequest, WorkloadRequest
from tests import small_models
from tests.conftest import CONFIGS
from tests.marks import one_in, slow

TINY, LLAMA = CONFIGS / "tiny-llama", CONFIGS / "llama-3.1-8b"
ROOT = Path(__file__).parents[1]
BOX = "2xH100,cpu=512GiB"


def test_importing_it_imports_nothing_heavy():
    code = (
        "import sys, devctl\n"
        "for name in devctl.__all__:\n"
        "    getattr(devctl, name)\n"
        "heavy = {'torch', 'transformers', 'accelerate', 'pydantic', 'rich', 'typer', 'pynvml'}\n"
        "print(heavy & {module.partition('.')[0] for module in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_every_public_name_is_there_and_told():
    for name in devctl.__all__:
        value = getattr(devctl, name)
        assert name == "__version__" or inspect.getdoc(value), f"{name} has no docstring"
    assert set(devctl.__all__) <= set(dir(devctl))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        devctl.nothing  # noqa: B018


@pytest.mark.parametrize(
    ("arguments", "options"),
    one_in(
        4,
        [
            ({}, []),
            ({"strategy": "balanced_low_0"}, ["--strategy", "balanced_low_0"]),
            ({"objective": "latency"}, ["--objective", "latency"]),
            ({"objective": "latency", "speed": {0: "1TB"}}, ["--objective", "latency", "--speed", "0=1TB"]),
            (
                {"context_length": 1024, "batch_size": 2, "kv_dtype": "int8"},
                ["--context-length=1024", "--batch-size=2"],
            ),
            (
                {"context_length": 300, "new_tokens": 20, "overhead": "1GiB"},
                ["--context-length=300", "--new-tokens=20"],
            ),
            *slow(
                ({"target_context": 120_000}, ["--target-context", 120_000]), ({"max_context": True}, ["--max-context"])
            ),
            ({"max_memory": {0: 10**10}}, ["--max-memory", "0=10000000000B"]),
            ({"reserve": "10%", "visible": [1]}, ["--reserve", "10%", "--visible", 1]),
            ({"dtype": "float16", "disk": False}, ["--dtype", "float16", "--no-disk"]),
            ({"quantize": "int8"}, ["--quantize", "int8"]),
            ({"device_map": {"": 0}}, ["--map", 0]),
        ],
    ),
    ids=str,
)
def test_a_plan_is_what_the_command_prints(devctl_command, arguments, options):
    if "kv_dtype" in arguments:
        options = [*options, "--kv-dtype", "int8"]
    if "overhead" in arguments:
        options = [*options, "--overhead", "1GiB"]
    model = TINY if "context_length" in arguments else LLAMA
    printed = devctl_command("plan", model, "--devices", BOX, "--json", *options)
    assert printed.code == 0, printed.err
    plan = devctl.plan(model, BOX, **arguments)
    document = json.loads(printed.out)
    assert plan.fits
    assert plan.to_document() == document
    assert list(plan.to_document()) == list(document)
    assert plan.to_hf() == document["device_map"]
    assert devctl.ComponentDevice.from_multiple(plan.device_map).to_hf() == plan.to_hf()


@pytest.fixture
def devctl_command(request):
    return request.getfixturevalue("devctl")


@pytest.mark.slow
def test_the_other_answers_are_what_the_commands_print(devctl_command):
    compared = devctl_command("plan", LLAMA, "--devices", "2x8GiB,cpu=64GiB", "--compare", "--json")
    assert devctl.compare(LLAMA, "2x8GiB,cpu=64GiB").to_document() == json.loads(compared.out)
    tiny, box = CONFIGS / "tiny-llama", "48MiB"
    tried = devctl_command("plan", tiny, "--devices", box, "--overhead", "0B", "--what-if", "--json")
    found = devctl.capacity(tiny, box, overhead="0B")
    assert found.max_context > 0 and found.max_batch > 0
    assert [case["fits"] for case in json.loads(tried.out)["cases"]] == [case.fits for case in found.what_if]
    most = devctl.plan(tiny, box, strategy="optimal", max_context=True, overhead=0).max_context
    assert found.max_context == pytest.approx(most.optimal, rel=0.001), "told to a part in a thousand"
    filled = devctl.plan(tiny, box, target_context=found.context_length, overhead=0)
    assert filled.runtime.footprint.workload.batch_size == found.max_batch
    listed = json.loads(devctl_command("list", "--json").out)
    assert listed["host"]["cpu"] == devctl.take_inventory().host.cpu
    checked = devctl_command("check", "--ram", "1MiB", "--json")
    verdict = devctl.check(devctl.Requirements(ram="1MiB"))
    assert verdict.ok and verdict.reasons == ()
    assert verdict.to_document().keys() == json.loads(checked.out).keys()


@pytest.mark.parametrize(
    ("model", "machine", "arguments", "options"),
    one_in(
        3,
        [
            (LLAMA, "8GiB", {"offload": False}, ["--no-offload"]),
            (LLAMA, "8GiB,cpu=64GiB", {"offload": False}, ["--no-offload"]),
            (LLAMA, "8GiB,cpu=64GiB", {}, []),
            (LLAMA, "8GiB,cpu=1GiB", {}, []),
            (TINY, "8MiB", {"context_length": 64, "overhead": 0}, ["--context-length", 64, "--overhead", "0B"]),
            *slow(
                (LLAMA, "16GiB", {"context_length": 100_000}, ["--context-length", 100_000]),
                (LLAMA, "1GiB", {"target_context": 4096}, ["--target-context", 4096]),
            ),
        ],
    ),
)
def test_a_plan_does_not_fit_just_where_the_command_exits_with_3(devctl_command, model, machine, arguments, options):
    plan = devctl.plan(model, machine, **arguments)
    done = devctl_command("plan", model, "--devices", machine, *options)
    assert plan.fits == (done.code == 0)
    if not plan.fits:
        assert done.code == 3
        assert plan.refusal.message in done.err
        assert all(finding in done.err for finding in plan.refusal.findings)


def test_a_map_that_can_not_hold_has_findings():
    assert devctl.plan(LLAMA, "24GiB", device_map={"model": 0}).refusal.findings


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: devctl.plan(LLAMA, BOX, strategy="best"), "strategy 'best' is not one of auto, balanced"),
        (lambda: devctl.plan(LLAMA, BOX, dtype="int3"), "dtype 'int3' is not one of auto"),
        (lambda: devctl.plan(LLAMA, BOX, batch_size=4), "leave out batch_size"),
        (lambda: devctl.plan(LLAMA, BOX, device_map={"": 0}, strategy="auto"), "leave out strategy"),
        (lambda: devctl.plan(LLAMA, BOX, context_length=0), "context_length 0: it is at least 1"),
        (lambda: devctl.plan(LLAMA, BOX, context_length=2**23), "are more than devctl counts"),
        (lambda: devctl.plan(LLAMA, BOX, max_memory={"gpu": 1}), "max_memory: 'gpu' is not a device"),
        (lambda: devctl.plan(LLAMA, "3xNOTHING"), "machine: "),
        (lambda: devctl.plan(LLAMA, BOX, device_map={"": "moon"}), "is no device"),
        (lambda: devctl.plan(LLAMA, BOX, strategy="auto", target_context=8), "objective and target_context are for"),
        (devctl.check, "nothing to check"),
        (lambda: devctl.check(devctl.Requirements(gpus=1), model="x"), "is only for device_map"),
        (lambda: devctl.Requirements(gpu_memory="40"), "has no unit"),
        (lambda: devctl.load(LLAMA, load_format="gguf"), "load_format 'gguf' is not one of"),
        (lambda: devctl.plan(torch.nn.Linear(1, 1), BOX, dtype="float16"), "dtype: a module that is there already"),
    ],
)
def test_what_is_given_wrong_is_named_by_its_keyword(call, said):
    with pytest.raises(devctl.UsageError) as raised:
        call()
    assert said in raised.value.message
    assert "--" not in raised.value.message.replace("--gpu-memory", "")


def test_requests_are_checked_where_they_are_made():
    with pytest.raises(devctl.UsageError, match="--batch-size 0: it is at least 1"):
        WorkloadRequest(batch_size=0)
    with pytest.raises(devctl.UsageError, match="--devices and --machine both"):
        MachineRequest(devices="H100", file="box.json")
    with pytest.raises(devctl.UsageError, match="--quantize 'int5' is not one of"):
        ModelRequest(model="x", quantize="int5")


@pytest.mark.parametrize("name", ["llama", *slow("llama-tied", "bert", "t5", "mixtral")])
def test_a_live_model_is_planned_as_its_checkpoint_is(name, checkpoint):
    import transformers

    folder = checkpoint(name)
    from_file = devctl.plan(folder, "2x1MiB,cpu=1GiB", context_length=32)
    architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
    live = getattr(transformers, architecture).from_pretrained(folder)
    given = devctl.plan(live, "2x1MiB,cpu=1GiB", context_length=32)
    again = devctl.plan(live, "2x1MiB,cpu=1GiB", context_length=32)
    assert given.to_hf() == again.to_hf() == from_file.to_hf()
    # what is there already is not loaded any more
    alike = [[replace(use, loading=0) for use in plan.placement.devices] for plan in (given, from_file)]
    assert alike[0] == alike[1]


def test_a_live_model_that_was_changed_is_counted_as_it_is(checkpoint):
    import transformers

    live = transformers.AutoModelForCausalLM.from_pretrained(checkpoint("llama"))
    live.model.layers[0].mlp.gate_proj = torch.nn.Linear(64, 4096, bias=False)
    plan = devctl.plan(live, "1GiB", context_length=32)
    assert plan.model.nbytes == sum(p.nbytes for p in live.parameters()) + sum(b.nbytes for b in live.buffers())
    assert any("are not counted" in note for note in plan.notes)


def test_any_module_is_planned_and_one_tensor_counts_once():
    module = torch.nn.Sequential(torch.nn.Linear(8, 8, bias=False), torch.nn.Linear(8, 8, bias=False))
    module[1].weight = module[0].weight
    plan = devctl.plan(module, "1GiB")
    assert plan.model.nbytes == 8 * 8 * 4
    assert plan.to_hf() == {"": 0}
    with torch.device("meta"):
        meta = torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(3)))  # of 288 bytes each
    spread = devctl.plan(meta, max_memory={0: 700, "cpu": 10**6}, strategy="sequential")
    assert spread.to_hf() == {"0": 0, "1": "cpu", "2": "cpu"}, "room for the largest is kept free for what is offloaded"


@pytest.mark.slow
def test_several_threads_plan_at_once():
    lengths = [600, 700, 800, 900]
    alone = {n: devctl.plan(TINY, BOX, context_length=n, cache=False).to_document() for n in lengths[:2]}
    found = {}

    def plan(length):
        found[length] = devctl.plan(TINY, BOX, context_length=length, cache=False).to_document()

    threads = [threading.Thread(target=plan, args=(length,)) for length in lengths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found.keys() == set(lengths)
    assert all(found[length] == alone[length] for length in alone)


def test_load_tells_and_prints_nothing(checkpoint, capfd):
    folder = checkpoint("llama")
    capfd.readouterr()
    report = devctl.load(folder, {"": "cpu"}, max_new_tokens=2)
    assert report.ok
    assert report.to_document()["kind"] == "devctl.load"
    plan = devctl.plan(checkpoint("llama"), max_memory={"cpu": "1GiB"})
    assert devctl.load(checkpoint("llama"), plan, max_new_tokens=1).device_map == plan.to_hf()
    with pytest.raises(devctl.RefusedError):
        devctl.load(checkpoint("llama"), {"model": "cpu"})
    assert capfd.readouterr() == ("", "")


def test_a_program_can_be_told_what_goes_on(checkpoint):
    from contextlib import contextmanager, nullcontext

    told = []

    class Reporter:
        @contextmanager
        def status(self, text):
            told.append(text)
            yield

        def progress(self, text, total):
            told.append(text)
            return nullcontext(lambda _: None)

        building = staticmethod(nullcontext)

        def warn(self, text):
            told.append(text)

    with reporting(Reporter()):
        devctl.plan(checkpoint("llama"), "1GiB", context_length=17, cache=False)
    assert any(text.startswith("looking for") for text in told)
    assert any(text == "tracing what 17 tokens hold in memory" for text in told)
    before = list(told)
    devctl.plan(checkpoint("llama"), "1GiB", context_length=17)
    assert told == before


def test_a_map_is_checked_in_any_of_its_forms(tmp_path, checkpoint):
    inventory = devctl.take_inventory()
    plan = devctl.plan(checkpoint("llama"), max_memory={"cpu": "1GiB"})
    (tmp_path / "map.json").write_text(json.dumps(plan.to_document()))
    for form in (plan, plan.device_map, plan.to_hf(), tmp_path / "map.json"):
        assert devctl.check(device_map=form, inventory=inventory).ok
    refused = devctl.check(device_map={"": 7}, inventory=inventory)
    assert not refused.ok
    assert "cuda:7: is not here" in refused.reasons[0]


def test_a_number_is_the_accelerator_that_the_machine_has_by_it():
    xpu = devctl.Device.from_str("xpu:0")
    gpu = Accelerator(device=xpu, index=0, name="X", uuid=None, memory_total=2**35, memory_free=2**35)
    host = Host(cpu="X", cores_physical=1, cores_logical=1, ram_total=2**30, ram_available=2**30)
    plan = devctl.plan(LLAMA, Inventory(accelerators=(gpu,), host=host, disks=()), device_map={"": 0})
    assert plan.fits
    assert plan.placement.device_map[""] == xpu


PAGE = (ROOT / "docs/library.md").read_text()


@pytest.mark.parametrize("left_out", ["context_length=", *slow("what no page has")])
def test_the_page_on_the_library_runs(monkeypatch, left_out):
    """But for blocks with what is ``left_out``: most of the time is that of texts of large models."""
    monkeypatch.chdir(ROOT)
    names = {}
    for block in re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL):
        code = compile(block, "docs/library.md", "exec")
        if left_out not in block:
            exec(code, names)  # noqa: S102 - our own page


def test_the_small_models_are_known():
    assert {"llama", "llama-tied", "bert", "t5", "mixtral"} <= set(small_models.TINY)
