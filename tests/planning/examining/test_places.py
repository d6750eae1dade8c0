"""Caches, and where shells look for completion."""

import os
from collections import namedtuple

import pytest

from devctl.inventory.probes import disk
from devctl.inventory.records import Disk, DiskKind
from devctl.planning.examining import folders
from devctl.planning.examining.findings import Level
from devctl.planning.examining.folders import judge_folders
from devctl.planning.examining.shells import is_installed, judge_completion, shell_of

GIB = 2**30


@pytest.fixture
def caches(tmp_path, monkeypatch):
    """Judges both caches, in folders of this test's: ``caches()["hub cache"]``."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("DEVCTL_CACHE_DIR", str(tmp_path / "own"))

    def judge(free=100 * GIB, kind=DiskKind.NVME):
        monkeypatch.setattr(
            disk, "probe", lambda use, path, _: Disk(use=use, path=str(path), total=2 * free, free=free, kind=kind)
        )
        found = judge_folders(os.environ)
        assert str(tmp_path) not in str(found)
        return {finding.subject: (finding.level, finding.text, finding.next_step) for finding in found}

    return judge


def test_caches_that_are_not_there_yet_can_be_made(caches):
    found = caches()
    assert found["hub cache"] == (Level.OK, "by HF_HOME: no models yet, 100 GiB free, on an NVMe disk", None)
    assert found["devctl cache"] == (Level.OK, "by DEVCTL_CACHE_DIR: 100 GiB free, on an NVMe disk", None)


def test_models_are_counted(caches, tmp_path):
    for name in ("models--a--b", "datasets--c", ".locks"):
        (tmp_path / "hf/hub" / name).mkdir(parents=True)
    assert "1 model," in caches()["hub cache"][1]


def test_little_space_and_memory_are_notes(caches):
    level, text, step = caches(free=GIB)["hub cache"]
    assert (level, "1.00 GiB free" in text, "HF_HOME" in step) == (Level.NOTE, True, True)
    assert caches(kind=DiskKind.MEMORY)["hub cache"][0] is Level.NOTE


def test_a_file_in_the_place_of_a_cache_is_told(caches, tmp_path):
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf/hub").write_text("")
    (tmp_path / "own").write_text("")
    found = caches()
    assert found["hub cache"][0] is Level.BROKEN
    assert found["hub cache"][1] == "by HF_HOME: something else than a folder is in its place"
    assert found["devctl cache"][0] is Level.NOTE


def test_folders_of_another_user_are_told(caches, tmp_path, monkeypatch):
    (tmp_path / "own").mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: (tmp_path / "own").stat().st_uid + 1)
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    found = caches()
    assert found["devctl cache"][:2] == (Level.NOTE, "by DEVCTL_CACHE_DIR: it belongs to another user, and is not used")
    assert found["hub cache"][0] is Level.NOTE
    assert "belongs to another user, and nothing can be downloaded to it" in found["hub cache"][1]


def test_a_cache_that_can_not_be_read_is_broken(caches, tmp_path, monkeypatch):
    (tmp_path / "hf/hub").mkdir(parents=True)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert caches()["hub cache"][0] is Level.BROKEN


def test_a_cache_of_a_user_that_there_is_not_is_broken(caches, monkeypatch):
    monkeypatch.setenv("DEVCTL_CACHE_DIR", "~nobody-of-this-name/x")
    level, text, _ = caches()["devctl cache"]
    assert (level, text) == (Level.BROKEN, "DEVCTL_CACHE_DIR names no folder")


def test_looking_changes_no_folder(caches, tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own").chmod(0o755)
    caches()
    assert (tmp_path / "own").stat().st_mode & 0o777 == 0o755


def test_a_folder_on_a_disk_that_does_not_tell_its_space(monkeypatch):
    found = folders._hub(
        folders.Path("/"), Disk(use="x", path="/", total=None, free=None, fault="stale handle"), "by HF_HOME"
    )
    assert (found.level, found.text) == (Level.BROKEN, "by HF_HOME: stale handle")


Place = namedtuple("Place", "shell path variables")
PLACES = [
    Place("bash", ".local/share/bash-completion/completions/devctl", {}),
    Place("bash", "data/bash-completion/completions/devctl", {"XDG_DATA_HOME": "{home}/data"}),
    Place("zsh", ".zfunc/_devctl", {}),
    Place("zsh", "functions/_devctl", {"FPATH": "/nowhere:{home}/functions"}),
    Place("fish", ".config/fish/completions/devctl.fish", {}),
    Place("fish", "config/fish/completions/devctl.fish", {"XDG_CONFIG_HOME": "{home}/config"}),
]
FILES = [
    Place("bash", ".bashrc", 'eval "$(devctl completion bash)"'),
    Place("bash", ".bashrc", "source ~/src/completions/devctl.bash"),
    Place("zsh", ".zshrc", "source <(devctl completion zsh)"),
    Place("fish", ".config/fish/config.fish", "devctl completion fish | source"),
    Place("pwsh", ".config/powershell/profile.ps1", "devctl completion pwsh | Out-String | Invoke-Expression"),
]


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("place", PLACES, ids=lambda place: f"{place.shell} {place.path}")
def test_a_script_where_a_shell_looks_is_found(home, place):
    variables = {name: value.format(home=home) for name, value in place.variables.items()}
    assert not is_installed(place.shell, variables)
    (home / place.path).parent.mkdir(parents=True)
    (home / place.path).write_text("")
    assert is_installed(place.shell, variables)


@pytest.mark.parametrize("place", FILES, ids=lambda place: f"{place.shell} {place.variables}")
def test_a_start_up_file_that_mentions_it_is_found(home, place):
    (home / place.path).parent.mkdir(parents=True, exist_ok=True)
    (home / place.path).write_text("# nothing\n")
    assert not is_installed(place.shell, {})
    (home / place.path).write_text(place.variables)
    assert is_installed(place.shell, {})


def test_a_script_that_an_older_devctl_wrote_is_told(home):
    (home / ".zfunc").mkdir()
    (home / ".zfunc/_devctl").write_text('#compdef devctl\neval $(env _TYPER_COMPLETE_ARGS="${words}" devctl)\n')
    (finding,) = judge_completion({"SHELL": "/bin/zsh"})
    assert (finding.level, finding.next_step) == (Level.NOTE, "write it anew with `devctl completion zsh`")
    (home / ".zfunc/_devctl").write_text("#compdef devctl\n")
    assert judge_completion({"SHELL": "/bin/zsh"})[0].level is Level.OK


def test_a_start_up_file_that_is_no_file_is_passed_over(home):
    (home / ".bashrc").mkdir()
    assert not is_installed("bash", {})


def test_only_the_users_own_shell_is_judged(home):
    assert [shell_of({"SHELL": path}) for path in ("/bin/bash", "/usr/bin/zsh", "/bin/sh", "")] == [
        "bash",
        "zsh",
        None,
        None,
    ]
    assert judge_completion({"SHELL": "/bin/sh"}) == judge_completion({}) == []
    (finding,) = judge_completion({"SHELL": "/bin/fish"})
    assert finding.level is Level.NOTE
    assert finding.next_step == "write it with `devctl completion fish > ~/.config/fish/completions/devctl.fish`"


@pytest.mark.parametrize(("shell", "file"), [("bash", ".bashrc"), ("zsh", ".zshrc")])
def test_who_does_as_is_said_is_told_so(home, shell, file):
    (finding,) = judge_completion({"SHELL": f"/bin/{shell}"})
    assert file in finding.next_step
    (home / file).write_text(finding.next_step.split("`")[1])
    assert judge_completion({"SHELL": f"/bin/{shell}"})[0].level is Level.OK
