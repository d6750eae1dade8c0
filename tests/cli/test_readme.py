"""README and docs show what the commands really print."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
DEMO = README[README.index("<!-- demo -->") : README.index("<!-- /demo -->")]
RANKS = (ROOT / "docs/ranks.md").read_text()
HOSTS = (ROOT / "docs/hosts.md").read_text()


def masked(text):
    """``text`` without the figures that differ from run to run."""
    text = re.sub(r"note: the predicted peak: what oneDNN .*\n", "", text)  # where it is much, by the processor
    text = re.sub(r"about [0-9,]+ tokens", "about # tokens", text)  # each thread of the CPU takes some memory
    text = re.sub(r"[0-9.e+]+ (ms|s|tokens/s|[KMG]iB/s|[KMG]iB host peak)\b", "#", text)
    return re.sub(r"[0-9.]+ MiB +[0-9.]+ MiB +[-+][0-9.]+%", "#", text)  # the CPU's kernels differ by processor


def test_the_demo_is_as_it_looks(devctl, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("DEVCTL_CACHE_DIR", str(tmp_path / "cache"))  # what is shown is a first plan's
    plan = devctl("plan", "tests/configs/tiny-llama", "--max-memory", "cpu=12MiB")
    assert masked(plan.err + plan.out) in masked(DEMO)
    (tmp_path / "map.json").write_text(plan.out)
    load = devctl("load", "tests/configs/tiny-llama", "--map", tmp_path / "map.json", "--load-format", "dummy")
    assert masked(load.out) in masked(DEMO)
    makefile = (ROOT / "Makefile").read_text().replace("$(TINY)", "tests/configs/tiny-llama")
    for command in re.findall(r"^\$ devctl (.*)$", DEMO, re.MULTILINE):
        assert f"devctl {command}\\n" in makefile


def test_plans_of_ranks_are_as_they_look(devctl, monkeypatch):
    monkeypatch.chdir(ROOT)
    shown = re.findall(r"^\$ devctl (.*?)(?: > .*)?\n((?:(?!\$|```).*\n)*)", RANKS, re.MULTILINE)
    assert len(shown) == 2
    for command, said in shown:
        assert devctl(*command.split()).err == said


def test_every_exit_code_is_documented():
    from devctl.errors import ExitCode

    for code in ExitCode:
        assert f"| {code.value} |" in (ROOT / "docs/json.md").read_text()


def test_a_plan_over_hosts_is_as_it_looks(devctl, monkeypatch):
    monkeypatch.chdir(ROOT)
    shown = HOSTS[HOSTS.index("<!-- hosts -->") : HOSTS.index("<!-- /hosts -->")]
    command, _, said = shown.partition("$ devctl ")[2].partition("\n")
    done = devctl(*shlex.split(command.partition(" > ")[0]))
    assert (done.code, said.partition("```")[0]) == (0, done.err)
