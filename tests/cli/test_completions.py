"""Completion: the files that are kept are current, and work in real shells, on a terminal, at TAB."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from devctl.cli import COMMANDS, described
from devctl.completion import entry, shells
from tests.conftest import DEVCTL
from tests.marks import one_in, slow
from tests.shells import Shell

SCRIPTS = Path(__file__).parents[2] / "completions"
FILES = {"bash": "devctl.bash", "zsh": "_devctl", "fish": "devctl.fish", "pwsh": "devctl.ps1"}
PATH = {"PATH": f"{DEVCTL.parent}{os.pathsep}{os.environ['PATH']}"}


def run(*command, **env):
    return subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | PATH | env).stdout


def test_the_command_line_as_data_is_current():
    """`make completions` writes it."""
    assert entry._TABLE.read_text(encoding="utf-8") == described.dump()
    assert list(entry.table()["commands"]) == ["", *COMMANDS]


@pytest.mark.parametrize("shell", FILES)
def test_the_scripts_are_current(shell):
    """`make completions` writes them."""
    assert (SCRIPTS / FILES[shell]).read_text() == run(DEVCTL, "completion", shell)
    assert run(DEVCTL, _DEVCTL_COMPLETE=f"source_{shell}") == run(DEVCTL, "completion", shell)
    assert shells.SCRIPTS[shell] == FILES[shell]


def test_zsh_finds_its_script_by_the_first_line():
    assert (SCRIPTS / "_devctl").read_text().startswith("#compdef devctl\n")


def test_a_shell_that_there_is_no_script_for_is_wrong_usage(devctl):
    done = devctl("completion", "tcsh")
    assert done.code == 2
    assert "bash" in done.err


def test_no_shell_is_wrong_usage_that_names_them(devctl):
    done = devctl("completion")
    assert (done.code, done.err.splitlines()[0]) == (2, "devctl: which shell is it: bash, zsh, fish, pwsh?")


@pytest.mark.parametrize("asked", ["complete_tcsh", "bash", "source_", "x" * 1000])
def test_an_instruction_that_is_none_is_told(asked):
    environment = os.environ | {"_DEVCTL_COMPLETE": asked}
    done = subprocess.run([DEVCTL], capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("devctl: _DEVCTL_COMPLETE is none of")


def test_a_reader_that_has_gone_is_no_traceback():
    with open("/dev/full", "w") as full:  # noqa: PTH123
        environment = os.environ | {"_DEVCTL_COMPLETE": "source_bash"}
        done = subprocess.run([DEVCTL], stdout=full, stderr=subprocess.PIPE, text=True, check=False, env=environment)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize("shell", ["zsh", "fish", "powershell"])
def test_the_script_of_an_older_devctl_is_answered_nothing_that_it_could_run(shell):
    older = {"_DEVCTL_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_ARGS": "devctl pl"}
    assert run(DEVCTL, **older) == ""


@pytest.fixture
def started(tmp_path):
    """Starts a shell that has its script, in a folder with a map, a plan, a hub's cache and a folder of a model."""
    open_shells = []
    for model in ("openai-community--gpt2", "bert-base"):
        (tmp_path / "hf/hub" / f"models--{model}" / "snapshots/0123").mkdir(parents=True)
    (tmp_path / "hf/hub/models--not--fetched").mkdir()
    (tmp_path / "map.json").write_text("{}")
    (tmp_path / "map two.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "models/tiny").mkdir(parents=True)

    def start(name, set_up=None, **options):
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not installed")
        variables = PATH | {"HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": str(SCRIPTS.parent)}
        shell = Shell(name, str(tmp_path), set_up or f"source '{SCRIPTS / FILES[name]}'", variables, **options)
        open_shells.append(shell)
        return shell

    yield start
    for shell in open_shells:
        shell.__exit__()


@pytest.mark.parametrize("name", one_in(3, ["bash", "zsh", "fish"]))
def test_tab_offers_commands_options_and_their_values(started, name):
    shell = started(name)
    shell.offers("devctl ", *COMMANDS)
    said = shell.offers("devctl plan --max-", "--max-memory", "--max-context")
    assert "--machine" not in said
    said = shell.offers("devctl plan x --strategy bal", "balanced", "balanced_low_0")
    assert "sequential" not in said
    shell.completes("devctl pl", "devctl plan")
    shell.completes("devctl plan x --dtype float6", "devctl plan x --dtype float64")
    shell.completes("devctl plan x --kv-dtype=float8", "devctl plan x --kv-dtype=float8_e4m3fn")
    shell.completes("devctl check --form", "devctl check --format")


@pytest.mark.parametrize("name", ["bash", *slow("zsh", "fish")])
def test_tab_offers_the_values_behind_an_equals_sign(started, name):
    shell = started(name)
    before = "…strategy=" if name == "fish" else ""
    said = shell.offers("devctl plan x --strategy=", *(f"{before}{each}" for each in ("auto", "optimal", "sequential")))
    assert "map.json" not in said
    shell.completes("devctl plan x --strategy=opt", "devctl plan x --strategy=optimal")
    shell.completes("devctl plan x --map=models/t", "devctl plan x --map=models/tiny/")


@pytest.mark.parametrize("name", ["bash", *slow("zsh", "fish")])
def test_tab_offers_boards_behind_a_count_and_within_a_list(started, name):
    shell = started(name)
    shell.offers("devctl plan x --devices 2xH", "2xH100", "2xH200", "2xH100-SXM")
    shell.completes("devctl plan x --devices 2xH100,cp", "devctl plan x --devices 2xH100,cpu=")
    shell.completes("devctl plan x --devices 2xMI325", "devctl plan x --devices 2xMI325X")
    shell.completes("devctl plan x --fits-on T4,RTX-409", "devctl plan x --fits-on T4,RTX-4090")
    shell.completes("devctl plan x --devices 'a:2xH100;b:4xMI325", "devctl plan x --devices a:2xH100;b:4xMI325X")


@pytest.mark.parametrize("name", ["bash", *slow("zsh", "fish")])
def test_tab_offers_devices_maps_and_models_of_the_hubs_cache(started, name):
    shell = started(name)
    said = shell.offers("devctl load x --map ", "cpu", "map.json", "models/")
    assert "notes.txt" not in said
    said = shell.offers("devctl plan ", "bert-base", "openai-community/gpt2", "models/")
    assert "not/fetched" not in said
    assert "notes.txt" not in said
    shell.completes("devctl plan openai", "devctl plan openai-community/gpt2")
    shell.completes("devctl plan x --max-memory c", "devctl plan x --max-memory cpu=")


@pytest.mark.parametrize("name", ["bash", *slow("zsh", "fish")])
def test_a_file_with_a_blank_in_its_name_is_one_word(started, name):
    shell = started(name)
    shell._seen = ""
    shell._send("devctl plan x --map map\\ t\t")
    shell.shows("two.json")
    shell._send("\x01printf '<%s>' \x05\n")
    shell.shows("<devctl><plan><x><--map><map two.json>")


@pytest.mark.parametrize("name", ["bash", *slow("zsh", "fish")])
def test_files_are_offered_where_a_file_is_meant_and_nowhere_else(started, name):
    shell = started(name)
    shell.completes("devctl plan x --report not", "devctl plan x --report notes.txt")
    shell.completes("devctl list --offload-folder mod", "devctl list --offload-folder models/")


def test_zsh_loads_the_script_from_a_folder_of_functions_as_its_start_up_file_says(started, tmp_path):
    (tmp_path / ".zfunc").mkdir()
    shutil.copy(SCRIPTS / "_devctl", tmp_path / ".zfunc")
    (tmp_path / ".zshrc").write_text("fpath+=~/.zfunc; autoload -Uz compinit; compinit -u\n")
    shell = started("zsh", "true", configured=True)
    shell.offers("devctl plan --strategy bal", "balanced", "balanced_low_0")


@pytest.mark.parametrize(
    ("name", "set_up"),
    one_in(
        2,
        [
            ("bash", "source <(devctl completion bash)"),
            ("zsh", "source <(devctl completion zsh)"),
            ("fish", "devctl completion fish | source"),
        ],
    ),
)
def test_a_shell_takes_the_script_as_the_command_prints_it(started, name, set_up):
    started(name, set_up).offers("devctl plan --strategy bal", "balanced", "balanced_low_0")


def test_bash_loads_the_script_from_the_folder_where_bash_completion_looks(started, tmp_path):
    library = Path("/usr/share/bash-completion/bash_completion")
    if not library.exists():
        pytest.skip("bash-completion is not installed")
    folder = tmp_path / ".local/share/bash-completion/completions"
    folder.mkdir(parents=True)
    shutil.copy(SCRIPTS / "devctl.bash", folder / "devctl")
    shell = started("bash", f"source {library}")
    shell.offers("devctl plan --strategy bal", "balanced", "balanced_low_0")


def test_fish_loads_the_script_from_its_folder(started, tmp_path):
    folder = tmp_path / ".config/fish/completions"
    folder.mkdir(parents=True)
    shutil.copy(SCRIPTS / "devctl.fish", folder)
    shell = started("fish", "true", configured=True)
    shell.offers("devctl plan --strategy bal", "balanced", "balanced_low_0")


def test_bash_keeps_what_was_typed_where_devctl_is_not_there(started):
    shell = started("bash")
    shell._send("PATH=/bin:/usr/bin\n")
    shell.completes("devctl plan notes", "devctl plan notes.txt")


def test_completion_in_tables_is_of_names_that_the_command_line_takes():
    """What the data says of each option is something that is looked up, or a value that the option takes."""
    from devctl.completion.values import KINDS

    for command in json.loads(described.dump())["commands"].values():
        for each in (*command["options"], *command["arguments"]):
            assert each["kind"] is None or each["kind"] in KINDS
            assert each["kind"] is None or not each["values"]
            assert each.get("takes", True) or (each["kind"] is None and not each["values"])


def test_every_board_that_is_offered_is_one_that_devices_takes():
    from devctl.inventory.hypothetical import parse_devices

    offered = entry.table()["boards"]
    assert {"H100", "H200", "T4", "RTX-4090", "MI300X"} <= set(offered)
    for board in offered:
        assert len(parse_devices(board).accelerators) == 1
    for board in set(offered) - set(entry.table()["alone"]):
        assert len(parse_devices(f"2x{board}").accelerators) == 2


def test_what_is_offered_for_an_engine_is_every_engine():
    from devctl.export.engines import ENGINES

    options = entry.table()["commands"]["export"]["options"]
    assert next(o["values"] for o in options if "--to" in o["names"]) == list(ENGINES)
