"""The lines that start ranks, and starting them from here."""

import ast
import contextlib
import json
import os
import shlex
import signal
import stat
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path

import jsonschema
import psutil
import pytest

from devctl.cli.staged import read_staged
from devctl.distributed.launch import Launcher, Run, commands, lines
from devctl.distributed.link import Limits
from devctl.distributed.seat import find_seat
from devctl.distributed.start import run_local
from devctl.errors import RefusedError, UsageError
from devctl.placement.parallel.records import Stage, Stages
from tests.distributed import plans


def made(*hosts, device="cuda:{}"):
    """A plan with a layer on each, one rank for each time that a host is named."""
    there = {}
    found = []
    for number, host in enumerate(hosts):
        local = there[host] = there.get(host, -1) + 1
        found.append(
            Stage(
                stage=number,
                host=host,
                devices=(device.format(local),),
                layers=(number, number + 1),
                used=1,
                state=0,
                activations=0,
                overhead=0,
                budget=10,
            )
        )
    return Stages(container="model.layers", stages=tuple(found))


def run_of(*hosts, **ways):
    return Run(stages=made(*hosts), arguments=("load", "a model", "--map", "s.json", "--distributed"), **ways)


def test_a_line_for_each_host_in_the_order_of_their_stages():
    found = lines(run_of("b", "b", "a"), Launcher.TORCHRUN)
    assert found == (
        "torchrun --nnodes 2 --node-rank 0 --nproc-per-node 2 --master-addr b --master-port 29500 "
        "--rdzv-conf timeout=60 -m devctl load 'a model' --map s.json --distributed",
        "torchrun --nnodes 2 --node-rank 1 --nproc-per-node 1 --master-addr b --master-port 29500 "
        "--rdzv-conf timeout=60 -m devctl load 'a model' --map s.json --distributed",
    )


def test_launchers_wait_for_each_other_as_long_as_ranks_do(devctl, llama, staged):
    assert "--rdzv-conf timeout=8 " in lines(run_of("a", "b", join=7.5), Launcher.TORCHRUN)[1]
    result = devctl("load", llama, "--map", staged, "--launch", "print", "--join-timeout", "90s")
    assert result.code == 0
    assert result.out.count("--rdzv-conf timeout=90 ") == 2
    assert "start them within 90 s of each other" in " ".join(result.err.split())


def test_slurm_runs_each_host_as_a_step_on_that_node_and_all_at_once():
    found = lines(run_of("b", "b", "a", port=3000), Launcher.SLURM)
    assert found[0].startswith(
        "srun --nodes=1 --ntasks=1 --nodelist=b --gpus-per-node=2 --kill-on-bad-exit=1 torchrun --nnodes 2 "
        "--node-rank 0 --nproc-per-node 2 "
    )
    assert found[0].endswith(" --distributed &")
    assert found[1].endswith(" --distributed")
    assert "--nodelist=a --gpus-per-node=1" in found[1]


def test_deepspeed_is_told_the_number_of_each_host():
    first, second = lines(run_of("a", "b"), Launcher.DEEPSPEED)
    assert first.startswith("deepspeed --no_ssh --num_nodes 2 --num_gpus 1 --node_rank 0 --master_addr a ")
    assert "--node_rank 1 " in second
    assert "--module devctl load" in second


def test_deepspeed_starts_as_many_on_every_host():
    with pytest.raises(RefusedError, match="as many ranks on every host"):
        lines(run_of("a", "a", "b"), Launcher.DEEPSPEED)


def test_kubernetes_runs_each_line_in_the_pod_of_that_name():
    first, second = lines(run_of("m-0", "m-1", address="m-0.m"), Launcher.KUBERNETES)
    assert first.startswith("kubectl exec m-0 -- torchrun --nnodes 2 --node-rank 0 ")
    assert "--master-addr m-0.m " in second
    assert first.endswith(" &")
    assert not second.endswith("&")


def test_a_step_of_slurm_has_all_boards_up_to_the_last_of_the_plan():
    run = Run(stages=made("a", "b", device="cuda:3"), arguments=())
    assert "--gpus-per-node=4" in lines(run, Launcher.SLURM)[0]


@pytest.mark.parametrize("name", ["-oProxyCommand=sh", "a b", "a;b", "$(id)", "a\nb", "é", "a/b"])
@pytest.mark.parametrize("launcher", [Launcher.TORCHRUN, Launcher.SLURM, Launcher.DEEPSPEED])
def test_a_name_that_a_shell_would_obey_is_refused(name, launcher):
    with pytest.raises(UsageError, match="no host's name"):
        commands(run_of(name, "b"), launcher)
    with pytest.raises(UsageError, match="--master-addr"):
        commands(run_of("a", "b", address=name), launcher)


def test_an_address_may_be_of_either_kind():
    for address in ("10.0.0.1", "fe80::1", "node-1.cluster"):
        assert f"--master-addr {address} " in lines(run_of("a", "b", address=address), Launcher.TORCHRUN)[0]


def test_who_logs_in_is_for_ssh_alone():
    assert lines(run_of("me@a", "b"), Launcher.TORCHRUN) == lines(run_of("a", "b"), Launcher.TORCHRUN)


@pytest.mark.parametrize("prompt", ["two\nlines", "\x1b[2J", "\u2028"])
def test_what_would_be_more_than_a_line_is_refused(prompt):
    run = Run(stages=made("a", "b"), arguments=("load", "m", "--prompt", prompt))
    with pytest.raises(UsageError, match="does not go into one line"):
        lines(run, Launcher.TORCHRUN)


def test_more_ranks_than_any_machine_has_accelerators_are_not_started():
    with pytest.raises(RefusedError, match="300 ranks"):
        run_local(run_of(*["a"] * 300), Limits(), print)


# a rank's seat


def environment(host_rank, local_rank, **more):
    return {
        "GROUP_RANK": str(host_rank),
        "LOCAL_RANK": str(local_rank),
        "MASTER_ADDR": "b",
        "MASTER_PORT": "29500",
        **more,
    }


def test_a_rank_finds_its_stage_by_its_host_and_its_number_there():
    stages = made("b", "b", "a")
    seats = {
        (host, local): find_seat(stages, environment(host, local, RANK="7"))  # which it does not go by
        for host, local in ((0, 0), (0, 1), (1, 0))
    }
    assert [(seat.me.host, seat.rank) for seat in seats.values()] == [("b", 0), ("b", 1), ("a", 2)]
    assert [seat.serves for seat in seats.values()] == [True, False, False]


def test_a_rank_of_torchrun_meets_at_its_agents_store():
    assert not find_seat(made("a", "b"), environment(0, 0, TORCHELASTIC_USE_AGENT_STORE="True")).serves


def test_a_rank_of_deepspeed_knows_its_host_by_another_name():
    found = environment(1, 0)
    found["CROSS_RANK"] = found.pop("GROUP_RANK")
    assert find_seat(made("a", "b"), found).rank == 1


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"GROUP_RANK": None}, "GROUP_RANK is not set"),
        ({"LOCAL_RANK": None}, "LOCAL_RANK is not set"),
        ({"LOCAL_RANK": "-1"}, "LOCAL_RANK is '-1'"),
        ({"LOCAL_RANK": "٣"}, "LOCAL_RANK is"),
        ({"LOCAL_RANK": "1"}, "no rank 1 on host 0: it has 1 on a, 1 on b"),
        ({"GROUP_RANK": "2"}, "no rank 0 on host 2"),
        ({"WORLD_SIZE": "3"}, "the launcher starts 3 processes"),
        ({"LOCAL_WORLD_SIZE": "2"}, "LOCAL_WORLD_SIZE"),
        ({"MASTER_ADDR": None}, "MASTER_ADDR is not set"),
        ({"MASTER_PORT": "0"}, "no port"),
        ({"MASTER_PORT": "99999"}, "no port"),
    ],
)
def test_a_launcher_that_does_not_fit_the_plan_is_named(changed, said):
    found = {name: value for name, value in {**environment(0, 0), **changed}.items() if value is not None}
    with pytest.raises(UsageError) as error:
        find_seat(made("a", "b"), found)
    assert said in error.value.message


@pytest.mark.parametrize(
    ("hosts", "hostname", "good"),
    [
        (("a", "b"), "b", False),
        (("a", "b"), "b.cluster.org", False),
        (("a.cluster.org", "b.cluster.org"), "b", False),
        (("me@a", "me@b"), "b", False),
        (("a", "b"), "a", True),
        (("a", "b"), "elsewhere", True),
        (("a", "b"), "", True),
        (("10.0.0.1", "10.0.0.2"), "10", True),
    ],
)
def test_a_machine_that_is_another_host_of_the_plan_is_told_so(hosts, hostname, good):
    if good:
        assert find_seat(made(*hosts), environment(0, 0), hostname).rank == 0
        return
    with pytest.raises(UsageError, match="the launcher says that it is host 0"):
        find_seat(made(*hosts), environment(0, 0), hostname)
    assert find_seat(made(*hosts), environment(0, 0, MASTER_ADDR="127.0.0.1"), hostname).rank == 0


# the command line


@pytest.fixture
def staged(llama, tmp_path):
    """The file of a plan over two hosts."""
    return plans.write(tmp_path / "a plan.json", plans.document(llama, (1, 3), "ab"))


def test_lines_are_all_that_is_on_stdout(devctl, llama, staged):
    asked = ("--max-new-tokens", 4, "--step-timeout", "3min", "--json")
    result = devctl("load", llama, "--map", staged, "--launch", "print", *asked)
    assert result.code == 0
    first, second = result.out.splitlines()
    assert shlex.split(first)[-8:] == [
        "--map",
        str(staged),
        "--distributed",
        "--max-new-tokens",
        "4",
        "--step-timeout",
        "180s",
        "--json",
    ]
    assert "--node-rank 1" in second
    assert "needs the whole checkpoint" in result.err
    assert result.err.count("note: ") == len(result.err.splitlines())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--launch", "local", "--launcher", "slurm"), "--launcher is for --launch print"),
        (("--launch", "local", "--master-addr", "b"), "leave out --master-addr"),
        (("--distributed", "--launch", "print"), "leave out --launch"),
        (("--strategy", "optimal"), "leave out --strategy"),
        (("--repeat", "3"), "leave out --repeat"),
        (("--verify",), "leave out --verify"),
        (("--no-padding",), "one sequence is not padded"),
        (("--max-new-tokens", "0"), "nothing of several ranks is proven"),
        (("--step-timeout", "5 days"), "no time like 60s"),
        (("--join-timeout", "0s"), "leaves no time"),
        (("--join-timeout", "nans"), "no time"),
        (("--master-port", "0"), "0: it is from 1 to 65535"),
        (("--distributed",), "GROUP_RANK is not set"),
    ],
)
def test_an_option_that_changes_nothing_is_refused(devctl, llama, staged, options, said):
    result = devctl("load", llama, "--map", staged, *options)
    assert result.code == 2
    assert said in result.err
    assert result.out == ""


@pytest.mark.parametrize("option", [("--launch", "print"), ("--distributed",), ("--verify-weights",)])
def test_options_of_several_hosts_need_a_plan_over_them(devctl, llama, option):
    result = devctl("load", llama, "--map", "cpu", *option)
    assert result.code == 2
    assert f"leave out {option[0]}" in result.err


@pytest.mark.parametrize("option", [("--launch", "print"), ("--distributed",), ("--join-timeout", "9s")])
def test_a_plan_that_is_not_on_this_host_is_what_is_told(devctl, llama, tmp_path, option):
    half = tmp_path / "half.json"
    half.write_text('{"schema": 1, "kind": "devctl.plan", "mod')
    for name, said in (
        (tmp_path / "none.json", "cannot read the plan"),
        (tmp_path, "Is a directory"),
        (half, "half.json is broken JSON"),
        ("-", "every rank reads the plan from a file"),
    ):
        result = devctl("load", llama, "--map", name, *option)
        assert result.code == 2
        assert said in result.err
        assert option[0] not in result.err


def fake_ssh(folder, script, monkeypatch, path=""):
    """An ``ssh`` that does what ``script`` says; the host's name is in ``$host``, its line in ``$last``."""
    folder.mkdir()
    made = folder / "ssh"
    made.write_text(f"#!/bin/sh\nfor last; do before=$host; host=$next; next=$last; done\n{script}\n")
    made.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{path or os.environ['PATH']}")


ROOMS = ("distributed", "placement/parallel", "cli/staged.py", "planning/parallel.py", "planning/hosts.py")


def test_whatever_refuses_a_run_over_hosts_says_what_to_do():
    package = Path(__file__).parents[2] / "devctl"
    files = [file for room in ROOMS for file in (sorted((package / room).glob("*.py")) or [package / room])]
    calls = [
        (f"{file.name}:{node.lineno}", node)
        for file in files
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("RefusedError", "UsageError", "Refusal")
    ]
    assert len(calls) > 40
    # where a plan does not fit, the ways that would are among what was found
    without = [where for where, call in calls if not {"hint", "findings"} & {each.arg for each in call.keywords}]
    assert not without


def test_without_ssh_it_is_said_what_does_without(devctl, llama, staged, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    result = devctl("load", llama, "--map", staged, "--launch", "ssh")
    assert result.code == 2
    assert "cannot start ssh" in result.err
    assert "--launch print writes them" in result.err


@pytest.mark.parametrize(
    ("code", "hint"),
    [
        (255, "`ssh -o BatchMode=yes b true` has to work"),
        (127, "`ssh b torchrun --version` has to work"),
        (1, ""),
        (2, ""),
    ],
)
def test_a_host_whose_line_is_not_started_is_named_with_what_to_try(
    devctl, llama, staged, tmp_path, monkeypatch, code, hint
):
    fake_ssh(tmp_path / "bin", f"case $host in b) echo why >&2; exit {code};; esac", monkeypatch)
    result = devctl("load", llama, "--map", staged, "--launch", "ssh")
    assert result.code == 5, "that a launcher fails is no bug of ours"
    assert "b: why" in result.err
    assert f"b ended with exit code {code}, as it says above" in result.err
    assert hint in result.err


def test_a_host_that_does_nothing_and_ends_well_is_no_pass(devctl, llama, staged, tmp_path, monkeypatch):
    fake_ssh(tmp_path / "bin", "echo This account is not available.", monkeypatch)
    result = devctl("load", llama, "--map", staged, "--launch", "ssh")
    assert (result.code, result.out) == (5, "")
    assert "This account is not available." in result.err
    assert "none gave a report" in result.err


def test_lines_that_ssh_starts_in_a_home_folder_have_whole_paths(devctl, llama, staged, tmp_path, monkeypatch):
    fake_ssh(tmp_path / "bin", f'echo "$last" >> {shlex.quote(str(tmp_path / "log"))}', monkeypatch)
    (tmp_path / "model").symlink_to(llama)
    monkeypatch.chdir(tmp_path)
    devctl("load", "model", "--map", staged.name, "--launch", "ssh")
    told = (tmp_path / "log").read_text().splitlines()
    assert len(told) == 2
    for line in told:
        assert f"load {tmp_path}/model --map" in line
        assert f"{tmp_path}/{staged.name}" in line


_TORCHRUN = """E0101 torch/distributed/elastic/multiprocessing/api.py:1002] failed (exitcode: 5) local_rank: 0
Traceback (most recent call last):
  File "x", line 8, in <module>
============================================================
Root Cause (first observed failure):
  exitcode  : 5 (pid: 1)
============================================================
after it"""


def test_a_report_that_is_no_pass_is_shown_all_the_same(devctl, llama, staged, tmp_path, monkeypatch):
    report = {"schema": 1, "kind": "devctl.distributed_load", "ok": False}
    (tmp_path / "report").write_text(f"a banner\n{json.dumps(report, indent=2)}\n")
    (tmp_path / "said").write_text(f"devctl: other tokens\n{_TORCHRUN}\n")
    report_of_a = f"case $host in a) cat {tmp_path}/report; cat {tmp_path}/said >&2; exit 1;; esac"
    fake_ssh(tmp_path / "bin", report_of_a, monkeypatch)
    result = devctl("load", llama, "--map", staged, "--launch", "ssh", "--json")
    assert result.code == 5
    assert json.loads(result.out) == report
    assert result.err.splitlines() == [
        "a: devctl: other tokens",
        "a: after it",
        "a banner",
        "devctl: a ended with exit code 5, as it says above",
    ]


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        ({}, ("--batch-size", "2"), "give --no-padding"),
        ({}, ("--decode", "sample"), "--decode sample"),
        ({}, ("--decode", "beam:2"), "--decode beam:2"),
        ({"devices": ["cpu"]}, (), "on cpu of b: stages are loaded only on GPUs"),
        ({"devices": ["disk"]}, (), "on disk of b"),
    ],
)
def test_what_is_not_run_in_stages_is_refused_before_anything_starts(devctl, llama, tmp_path, change, options, said):
    plan = plans.document(llama, (1, 3), "ab")
    del plan["stages"][1]["ranks"]
    plan["stages"][1] |= change
    result = devctl("load", llama, "--map", plans.write(tmp_path / "plan.json", plan), *options)
    assert result.code == 3
    assert said in result.err
    assert result.out == ""


def test_shared_layers_in_stages_are_refused(devctl, llama, tmp_path):
    plan = plans.document(llama, (1, 3), "ab")
    for stage in plan["stages"]:
        stage["devices"] = ["cuda:0", "cuda:1"]
        del stage["ranks"]
    path = plans.write(tmp_path / "plan.json", plan)
    for command in (["load", llama, "--map", path], ["load", llama, "--map", path, "--launch", "print"]):
        result = devctl(*command)
        assert (result.code, result.out) == (3, "")
        assert "tensor and pipeline parallel" in result.err
        assert f"`devctl export {path} --to vllm`" in " ".join(result.err.split())


def test_one_host_has_nothing_to_compare_its_weights_with(devctl, llama, tmp_path):
    staged = plans.write(tmp_path / "plan.json", plans.document(llama, (1, 3), "aa"))
    result = devctl("load", llama, "--map", staged, "--verify-weights")
    assert result.code == 2
    assert "leave out --verify-weights" in result.err


def test_experts_that_are_spread_over_ranks_are_refused(devctl, llama, tmp_path):
    plan = plans.shared(llama, 2)
    plan["tensor_parallel"]["expert_parallel"] = 2
    result = devctl("load", llama, "--map", plans.write(tmp_path / "plan.json", plan), "--launch", "print")
    assert result.code == 3
    assert "expert parallel" in result.err


@pytest.mark.parametrize("said", [[1, 2], ["a", "b"], [5], None])
def test_bytes_of_other_ranks_are_wrong_usage(devctl, llama, tmp_path, said):
    plan = plans.shared(llama, 2)
    if said is None:
        plan["stages"][0]["used"] += 1
        del plan["stages"][0]["ranks"]
    else:
        plan["tensor_parallel"]["bytes_per_rank"] = said
    result = devctl("load", llama, "--map", plans.write(tmp_path / "plan.json", plan), "--launch", "print")
    assert result.code == 2
    assert "bytes_per_rank" in result.err


def test_a_plain_map_may_have_a_module_called_stages(tmp_path):
    assert read_staged(str(plans.write(tmp_path / "map.json", {"stages": 0, "head": "cpu"}))) is None
    assert read_staged(str(plans.write(tmp_path / "plan.json", {"kind": "devctl.plan", "stages": None}))) is None
    assert read_staged("cpu") is None


@pytest.mark.parametrize("change", [{"schema": 2}, {"kind": "other"}, {"stages": []}, {"layers_in": ""}])
def test_a_broken_plan_is_wrong_usage(devctl, llama, tmp_path, change):
    plan = {**plans.document(llama, (1, 3), "ab"), **change}
    assert devctl("load", llama, "--map", plans.write(tmp_path / "plan.json", plan)).code == 2


SCHEMA = json.loads((files("devctl.distributed") / "schema.json").read_text(encoding="utf-8"))


def devctl_alone(*arguments, path=None, **variables):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **variables}
    if path is not None:
        environment["PATH"] = f"{path}:{environment['PATH']}"
    command = [sys.executable, "-m", "devctl", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)


@pytest.mark.slow
def test_all_ranks_on_this_machine(llama, staged):
    result = devctl_alone("load", llama, "--map", staged, "--launch", "local", "--json")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    jsonschema.validate(report, SCHEMA)
    assert report["reference"] == "equal"


@pytest.mark.slow
def test_a_plan_of_one_host_is_run_on_this_machine_and_shown(llama, tmp_path):
    staged = plans.write(tmp_path / "plan.json", plans.document(llama, (1, 3), "aa"))
    result = devctl_alone("load", llama, "--map", staged, "--max-new-tokens", "2", COLUMNS="80")
    assert result.returncode == 0, result.stderr
    assert "pass tokens and logits are those of one process" in " ".join(result.stdout.split())
    assert max(map(len, result.stdout.splitlines())) <= 80


@pytest.mark.slow
def test_the_exit_code_of_whichever_rank_fails_first_is_that_of_all(llama, tmp_path):
    staged = plans.write(tmp_path / "plan.json", _longer(llama))
    result = devctl_alone("load", llama, "--map", staged, "--launch", "local")
    assert result.returncode == 2
    assert "the plan has 5 layers in model.layers, and LlamaForCausalLM has 4" in result.stderr
    assert result.stdout == ""


def _longer(llama):
    plan = plans.document(llama, (1, 3), "ab")
    plan["stages"][1]["layers"] = [1, 5]
    return plan


@pytest.fixture
def ssh(tmp_path):
    """A folder with an ``ssh`` that runs what it is given here, and writes down how it was called."""
    folder = tmp_path / "bin"
    folder.mkdir()
    log = tmp_path / "ssh.log"
    script = folder / "ssh"
    script.write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$*" >> {shlex.quote(str(log))}\nfor last; do :; done\nexec sh -c "$last"\n'
    )
    torchrun = folder / "torchrun"
    torchrun.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m torch.distributed.run "$@"\n')
    for path in (script, torchrun):
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return folder, log


@pytest.mark.slow
def test_each_hosts_line_is_started_by_ssh(llama, staged, ssh):
    folder, log = ssh
    result = devctl_alone(*_by_ssh(llama, staged), "--json", path=folder)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["reference"] == "equal"
    called = log.read_text().splitlines()
    assert len(called) == 2
    assert all("BatchMode=yes" in line and "torchrun" in line for line in called)


@pytest.mark.slow
def test_what_runs_on_other_hosts_ends_with_whoever_started_it(llama, staged, ssh):
    folder, _ = ssh
    # the second host's rank never comes, so that the first one's waits
    (folder / "ssh").write_text(
        (folder / "ssh")
        .read_text()
        .replace("exec sh", 'case "$*" in *node-rank\\ 1*|*"node-rank 1"*) exec sleep 300;; esac\nexec sh')
    )
    mark = f"{staged}"
    process = subprocess.Popen(
        [sys.executable, "-m", "devctl", *map(str, _by_ssh(llama, mark)), "--join-timeout", "10min"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "PATH": f"{folder}:{os.environ['PATH']}"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def ranks():
        found = []
        for each in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                line = each.cmdline()
                if mark in line and "--distributed" in line and each.status() != psutil.STATUS_ZOMBIE:
                    found.append(each)
        return found

    end = time.monotonic() + 120
    while not ranks():
        assert time.monotonic() < end
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    end = time.monotonic() + 60
    while left := ranks():
        assert time.monotonic() < end, left
        time.sleep(0.1)


@pytest.mark.slow
def test_a_host_that_ssh_does_not_reach_ends_all(llama, staged, ssh):
    folder, _ = ssh
    (folder / "ssh").write_text(
        '#!/bin/sh\ncase "$*" in *" b sh -c"*) echo "no route to b" >&2; exit 255;; esac\nexec sleep 60\n'
    )
    result = devctl_alone("load", llama, "--map", staged, "--launch", "ssh", "--step-timeout", "2s", path=folder)
    assert result.returncode == 5
    assert "b: no route to b" in result.stderr
    assert "b ended with exit code 255" in result.stderr


@pytest.mark.slow
def test_the_code_of_a_rank_comes_through_torchrun(llama, ssh, tmp_path):
    folder, _ = ssh
    staged = plans.write(tmp_path / "plan.json", _longer(llama))
    result = devctl_alone(*_by_ssh(llama, staged), path=folder)
    assert result.returncode == 2, result.stderr


def _by_ssh(model, staged):
    """The command that starts each host's line by ssh, to meet on this machine."""
    meeting = ("--master-addr", "127.0.0.1", "--master-port", _free())
    return ("load", model, "--map", staged, "--launch", "ssh", *meeting)


def _free():
    from tests.distributed.conftest import free_port

    return free_port()


def test_limits_leave_room_for_signs_of_life():
    assert Limits().silence == 60
    assert Limits(step=1).beat < Limits(step=1).silence / 4


@pytest.mark.slow
def test_a_rank_that_is_stopped_as_a_whole_is_ended_by_whoever_started_it(llama, staged):
    command = [
        sys.executable,
        "-m",
        "devctl",
        "load",
        llama,
        "--map",
        staged,
        "--launch",
        "local",
        "--step-timeout",
        "20s",
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(
        list(map(str, command)), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    end = time.monotonic() + 120
    ranks = []
    while len(ranks) < 2 or len(ranks[1].children()) < 1:
        assert time.monotonic() < end
        ranks = sorted(psutil.Process(process.pid).children(), key=lambda each: each.pid)
        time.sleep(0.05)
    stopped = [ranks[1], *ranks[1].children(recursive=True)]
    for each in stopped:
        each.suspend()
    _, said = process.communicate(timeout=240)
    assert process.returncode == 5, said
    assert "rank 1 on b: " in said
    assert not [each for each in stopped if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_who_started_the_ranks_ends_them_when_it_is_ended(llama, staged, number, code):
    command = [sys.executable, "-m", "devctl", "load", str(llama), "--map", str(staged), "--launch", "local"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 120
    below = []
    while len(below) < 3:
        assert time.monotonic() < end
        below = psutil.Process(process.pid).children(recursive=True)
        time.sleep(0.05)
    process.send_signal(number)
    out, said = process.communicate(timeout=120)
    assert process.returncode == code, said
    assert out == ""
    end = time.monotonic() + 30
    while any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in below):
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("host_rank", [0, 1])
def test_a_rank_that_waits_for_the_others_hears_an_interrupt(llama, staged, host_rank):
    command = [sys.executable, "-m", "devctl", "load", str(llama), "--map", str(staged), "--distributed"]
    variables = environment(host_rank, 0, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(_free()))
    process = subprocess.Popen(
        [*command, "--join-timeout", "10min"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    end = time.monotonic() + 120
    while not psutil.Process(process.pid).children():
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert said == "devctl: interrupted\n"
