"""Options that make no sense together, or change nothing where they stand, are refused by name."""

import pytest

from devctl.cli import COMMANDS
from devctl.planning import clashes
from tests.conftest import CONFIGS
from tests.marks import slow

LLAMA = str(CONFIGS / "llama-3.1-8b")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["plan", LLAMA, "--batch-size", "1"], "without a workload only weights are counted: leave out --batch-size"),
        (["plan", LLAMA, "--new-tokens", "3", "--kv-dtype", "int8"], "leave out --new-tokens and --kv-dtype"),
        (["plan", LLAMA, "--overhead", "1GiB", "--compare"], "leave out --overhead"),
        (["plan", LLAMA, "--what-if", "--batch-size", "2"], "--what-if tries them all: leave out --batch-size"),
        (["plan", LLAMA, "--compare", "--explain"], "--compare shows every strategy: leave out --explain"),
        (
            ["plan", LLAMA, "--map", "cpu", "--strategy", "auto"],
            "--map says where everything goes: leave out --strategy",
        ),
        (["plan", LLAMA, "--max-context", "--context-length", "9"], "leave out --context-length"),
        (["plan", LLAMA, "--target-context", "9", "--map", "cpu"], "--target-context looks for the batch or context"),
        (["plan", LLAMA, "--speed", "0=1TB"], "--speed is for --objective latency: leave out --speed"),
        (["plan", LLAMA, "--speed", "0=1TB", "--objective", "headroom"], "leave out --speed"),
        (["plan", LLAMA, "--explain", "--context-length", "9"], "--explain is of weights and their room"),
        (["plan", LLAMA, "--devices", "H100", "--machine", "x"], "both say what to plan for: leave out --machine"),
        (["load", LLAMA, "--map", "cpu", "--max-memory", "cpu=1GiB"], "leave out --max-memory"),
        (["load", LLAMA, "--tolerance", "5%"], "--tolerance is for a --baseline: leave out --tolerance"),
        (["check", "--gpus", "0", "--format", "index"], "--format is how --select names GPUs: leave out --format"),
        (["check", "--select", "1", "--json", "--format", "uuid"], "--json is a format of its own: leave out --format"),
        (["list", "--benchmark", "--watch", "1"], "--benchmark measures once: leave out --watch"),
        (["list", "--only", "gpu", "--offload-folder", "."], "leave out --offload-folder"),
        (["list", "--only", "cpu", "--benchmark"], "--benchmark measures disks and GPUs: leave out --benchmark"),
    ],
)
def test_what_changes_nothing_is_refused(devctl, command, said):
    done = devctl(*command)
    assert done.code == 2
    assert done.out == ""
    assert said in done.err


@pytest.mark.parametrize(
    "options",
    [
        ["--context-length", "64", "--batch-size", "2", "--kv-dtype", "int8", "--overhead", "0B", "--new-tokens", "2"],
        *slow(
            ["--max-context", "--batch-size", "2"],
            ["--what-if", "--overhead", "0B", "--new-tokens", "2"],
            ["--target-context", "64", "--kv-dtype", "int8"],
        ),
    ],
    ids=" ".join,
)
def test_beside_a_workload_they_count(devctl, short, options):
    assert devctl("plan", short, "--max-memory", "cpu=1GiB", *options).code == 0


_OF_LOAD = (clashes.OF_LOAD, clashes.OF_ONE_HOST, clashes.OF_STAGES, clashes.OF_RANK, clashes.OF_LAUNCH)


@pytest.mark.parametrize("table", [clashes.OF_PLAN, *_OF_LOAD, clashes.OF_CHECK, clashes.OF_LIST])
def test_every_option_of_a_table_is_one(devctl, table):
    shown = {command: devctl(command, "--help").out for command in COMMANDS}
    of = {id(clashes.OF_PLAN): "plan", id(clashes.OF_CHECK): "check", **{id(each): "load" for each in _OF_LOAD}}
    text = shown[of.get(id(table), "list")]
    for clash in table:
        for name in (*clash.unwanted, *clash.beside, *clash.without):
            assert f"--{name.split()[0]}" in text, name


def test_help_has_a_panel_for_each_group(devctl):
    for command, panels in (
        ("plan", ["Arguments", "Model", "Machine", "Placement", "Workload", "Engine", "Output", "Options"]),
        ("load", ["Arguments", "Model", "Placement", "Run", "Proofs and output", "Several hosts", "Options"]),
        ("check", ["Arguments", "GPUs", "Host and map", "Output", "Options"]),
    ):
        lines = devctl(command, "--help").out.splitlines()
        found = [line.removesuffix(":") for line in lines if line.endswith(":") and not line.startswith(" ")]
        assert found == [*panels, "Examples", "Exit codes"]
