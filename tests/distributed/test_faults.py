"""What goes wrong among ranks: every one of them ends, says where it began, and exits with the code of it."""

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.distributed import plans
from tests.distributed.conftest import free_port

STEP = 8
SHORT = ("--join-timeout", "20s", "--step-timeout", f"{STEP}s")
"""Of ranks that hang: longer than anything that does not, and what a test waits for."""
SILENCE = f"for {STEP // 2} s"


def fault(name, **arguments):
    return {"name": name, "with": arguments}


def own(rank, **ways):
    """What one rank has of its own."""
    return {rank: ways}


def codes(ranks):
    return [rank.code for rank in ranks]


@pytest.fixture
def plan(llama):
    return plans.document(llama, (1, 3), "ab")


@pytest.mark.slow
def test_a_rank_that_dies_ends_both(launch, llama, plan):
    ranks = launch(llama, plan, own=own(1, faults=[fault("in_generate", do="die")]))
    assert codes(ranks) == [5, 5], ranks
    for rank in ranks:
        assert "rank 1 on b: it died (exited with 9): running the smoke inference" in rank.err
        assert rank.out == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("do", "number", "said", "hint"),
    [
        *(
            ("killed", number, "it died (killed by SIGKILL)", "did the memory of its host run out?")
            for number in range(3)
        ),
        *(("raise", number, "RuntimeError: a kernel failed", "") for number in range(3)),
        *(("stop", number, f"it gave no sign of life {SILENCE}", "a longer --step-timeout") for number in (0, 2)),
    ],
)
def test_whichever_rank_fails_is_named_on_every_host(launch, llama, number, do, said, hint):
    plan = plans.document(llama, (1, 2, 1), "abb")
    ranks = launch(llama, plan, *SHORT, own=own(number, faults=[fault("in_generate", do=do)]))
    assert codes(ranks) == [5, 5, 5], ranks
    for rank in ranks:
        assert f"rank {number} on {'abb'[number]}: {said}" in rank.err, rank.err
        assert hint in rank.err
        assert rank.seconds < 60


@pytest.mark.slow
def test_a_rank_that_does_nothing_any_more_is_too_late(launch, llama, plan):
    ranks = launch(llama, plan, *SHORT, own=own(1, faults=[fault("in_generate", do="wait")]))
    assert codes(ranks) == [5, 5]
    said = f"rank 1 on b: no progress for {STEP} s: running the smoke inference"
    assert all(said in rank.err for rank in ranks), ranks


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_who_loses_its_watching_process_ends_and_is_named(launch, llama, plan, number):
    ranks = launch(llama, plan, *SHORT, own=own(number, faults=[fault("in_generate", do="orphan")]))
    assert ranks[number].code == -9
    other = ranks[1 - number]
    assert other.code == 5
    # the store dies with rank 0: who asks it at that moment is told of the connection alone
    told = (
        "Connection reset by peer"
        if number == 0 and "Connection reset" in other.err
        else f"rank {number} on {'ab'[number]}"
    )
    assert told in other.err
    assert other.seconds < 60


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_a_watching_process_that_stops_is_ended_by_its_own(launch, llama, plan, number):
    ranks = launch(llama, plan, *SHORT, own=own(number, faults=[fault("in_generate", do="stop the watching one")]))
    assert ranks[number].code == -9
    assert ranks[1 - number].code == 5
    assert f"rank {number} on {'ab'[number]}" in ranks[1 - number].err


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_a_rank_that_never_comes_is_waited_for_until_the_deadline(launch, llama, plan, number):
    ranks = launch(llama, plan, "--join-timeout", "4s", own=own(number, faults=[fault("never")]))
    assert ranks[number].code == 0
    assert ranks[1 - number].code == 5
    said = "it never came, for 4 s" if number else "no answer at 127.0.0.1"
    assert f"rank {number} on {'ab'[number]}: {said}" in ranks[1 - number].err
    assert "--join-timeout" in ranks[1 - number].err
    assert ranks[1 - number].seconds < 60


@pytest.mark.slow
def test_a_host_that_nobody_knows_is_told_at_once(launch, llama, plan):
    ranks = launch(llama, plan, "--join-timeout", "90s", address="no-such-host.invalid")
    assert codes(ranks) == [5, 5]
    assert all("no-such-host.invalid" in rank.err and rank.seconds < 60 for rank in ranks)


@pytest.mark.slow
def test_a_port_that_is_taken_is_named(launch, llama, plan):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ranks = launch(llama, plan, "--join-timeout", "3s", port=port)
    assert codes(ranks) == [5, 5]
    assert f"the port 127.0.0.1:{port} is taken" in ranks[0].err
    assert "--master-port" in ranks[0].err


def test_plans_that_differ_end_every_rank_before_it_loads(launch, llama, plan):
    other = plans.document(llama, (3, 1), "ab")
    ranks = launch(llama, plan, own=own(1, plan=other))
    assert codes(ranks) == [3, 3]
    for rank in ranks:
        assert "devctl: the hosts differ" in rank.err
        assert "(rank 0 on a)" in rank.err
        assert "(rank 1 on b)" in rank.err
        assert "  - the plan: " in rank.err


@pytest.mark.parametrize("package", ["devctl", pytest.param("torch", marks=pytest.mark.slow)])
def test_versions_that_differ_end_every_rank(launch, llama, plan, package):
    ranks = launch(llama, plan, own=own(1, faults=[fault("version", of=package, says="0.0.7")]))
    assert codes(ranks) == [3, 3]
    for rank in ranks:
        assert f"- {package}: " in rank.err
        assert "0.0.7 (rank 1 on b)" in rank.err


@pytest.mark.slow
def test_a_release_of_transformers_that_was_not_tried_is_refused_on_every_host(launch, llama, plan):
    ranks = launch(llama, plan, own=own(1, faults=[fault("version", of="transformers", says="5.0.7")]))
    assert codes(ranks) == [3, 3]
    for rank in ranks:
        assert "rank 1 on b: LlamaForCausalLM is not run in stages" in rank.err
        assert "transformers 5.0.7 was not tried" in rank.err


@pytest.mark.slow
def test_checkpoints_of_another_layout_are_named_file_by_file(launch, llama, plan, tmp_path):
    other = plans.save(tmp_path / "other", shards="200kB")
    ranks = launch(llama, plan, own=own(1, model=other))
    assert codes(ranks) == [3, 3]
    for rank in ranks:
        assert "model-00001-of-0000" in rank.err
        assert "none (rank 1 on b)" in rank.err


@pytest.mark.slow
def test_a_shard_of_other_bytes_with_the_same_header_is_told_by_its_size(launch, llama, plan, tmp_path):
    other = plans.copy(llama, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(
        json.dumps({**config, "rope_parameters": {"rope_type": "default", "rope_theta": 7.0}})
    )
    ranks = launch(llama, plan, own=own(1, model=other))
    assert codes(ranks) == [3, 3]
    assert all("- config.json: " in rank.err for rank in ranks)


@pytest.fixture
def altered(llama, tmp_path):
    """The same checkpoint with other weights, in files of the same headers and sizes."""
    return plans.save(tmp_path / "altered", seed=1)


def test_weights_that_differ_in_value_alone_are_found_by_the_reference(launch, llama, plan, altered):
    ranks = launch(llama, plan, own=own(1, model=altered))
    assert codes(ranks) == [5, 5]
    report = ranks[0].report
    assert report["reference"] == "different"
    assert report["ok"] is False
    assert report["ranks"][0]["ids"] == report["ranks"][1]["ids"]  # which proves nothing
    for rank in ranks:
        assert "the ranks do not do what one process does" in rank.err
        assert "--verify-weights" in rank.err


@pytest.mark.slow
def test_weights_that_differ_in_value_alone_are_found_by_their_digests(launch, llama, plan, altered):
    ranks = launch(llama, plan, "--verify-weights", own=own(1, model=altered))
    assert codes(ranks) == [3, 3]
    for rank in ranks:
        assert "the weights differ among the hosts" in rank.err
        assert "model-00004-of-00004.safetensors: " in rank.err
        assert "(a); " in rank.err
        assert "(b)" in rank.err


@pytest.mark.slow
def test_a_host_verifies_the_files_that_it_reads(launch, llama, tmp_path):
    plan = plans.document(llama, (3, 1), "ab")
    other = plans.copy(llama, tmp_path / "other")
    for name, byte in (("model-00001-of-00004.safetensors", 1), ("model-00004-of-00004.safetensors", 2)):
        data = bytearray((other / name).read_bytes())
        data[-1] ^= byte
        (other / name).write_bytes(data)
    ranks = launch(llama, plan, "--verify-weights", own=own(1, model=other))
    assert codes(ranks) == [3, 3]
    for rank in ranks:
        assert "model-00004-of-00004.safetensors" in rank.err
        assert "model-00001-of-00004.safetensors" not in rank.err  # which the second host does not read


@pytest.mark.slow
def test_weights_that_are_the_same_are_told_so(launch, llama, plan, tmp_path):
    ranks = launch(llama, plan, "--verify-weights", own=own(1, model=plans.copy(llama, tmp_path / "other")))
    assert codes(ranks) == [0, 0]
    assert ranks[0].report["weights"] == 3  # the second host does not read the first file


def test_a_shard_that_a_host_lacks_is_named_with_the_host(launch, llama, plan, tmp_path):
    other = plans.copy(llama, tmp_path / "other")
    (other / "model-00001-of-00004.safetensors").unlink()
    ranks = launch(llama, plan, own=own(1, model=other))
    assert codes(ranks) == [4, 4]
    for rank in ranks:
        assert "rank 1 on b: " in rank.err
        assert "model-00001-of-00004.safetensors" in rank.err


@pytest.mark.slow
def test_where_the_reference_has_no_room_nothing_is_proven(launch, tmp_path):
    model = plans.save(tmp_path / "model", "MixtralForCausalLM")  # whose experts are not read as they are
    plan = plans.document(model, (2, 2), "ab")
    ranks = launch(model, plan, own=own(0, faults=[fault("little_ram", available=1000)]))
    assert codes(ranks) == [3, 3]
    assert ranks[0].report["reference"] == "not_run"
    assert ranks[0].report["ok"] is False
    assert all("nothing proves that it ran right" in rank.err for rank in ranks)


def test_where_the_reference_has_little_room_its_layers_are_read_one_after_another(launch, llama, plan):
    ranks = launch(llama, plan, own=own(0, faults=[fault("little_ram", available=1000)]))
    assert codes(ranks) == [0, 0], ranks
    assert ranks[0].report["reference"] == "equal"
    assert ranks[0].report["reference_said"].endswith("on the CPU, layer by layer")


@pytest.mark.slow
def test_weights_that_differ_are_found_by_a_reference_that_is_read_layer_by_layer(launch, llama, plan, altered):
    little = {"faults": [fault("little_ram", available=1000)]}
    ranks = launch(llama, plan, own={0: little, 1: {"model": altered}})
    assert codes(ranks) == [5, 5]
    assert ranks[0].report["reference"] == "different"


@pytest.mark.slow
def test_a_prompt_that_differs_is_found_before_anything_is_loaded(launch, llama, plan):
    ranks = launch(llama, plan, own=own(1, options=["--max-new-tokens", "3"]))
    assert codes(ranks) == [3, 3]
    assert all("- the run: " in rank.err for rank in ranks)


HOSTS = {"dvtA": "10.77.9.1", "dvtB": "10.77.9.2"}


@pytest.fixture
def hosts():
    """Two network namespaces joined by a pair of devices, as two hosts."""
    if os.geteuid() or shutil.which("ip") is None:
        pytest.skip("only root makes network namespaces")

    def ip(*arguments):
        return subprocess.run(["ip", *arguments], check=False, capture_output=True, text=True)

    if ip("netns", "add", "dvtA").returncode:
        pytest.skip("network namespaces can't be made here")
    try:
        for made in (
            ("netns", "add", "dvtB"),
            ("link", "add", "dvta", "netns", "dvtA", "type", "veth", "peer", "name", "dvtb", "netns", "dvtB"),
        ):
            if ip(*made).returncode:
                pytest.skip("network namespaces can't be joined here")
        for name, address in HOSTS.items():
            device = f"dvt{name[-1].lower()}"
            ip("-n", name, "addr", "add", f"{address}/24", "dev", device)
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", device, "up")
        yield ip
    finally:
        for name in HOSTS:
            ip("netns", "del", name)


def on(name):
    return {"netns": name}


@pytest.mark.slow
def test_two_hosts_find_each_other_by_the_way_to_the_first(launch, llama, plan, hosts):
    ranks = launch(llama, plan, address="10.77.9.1", own={0: on("dvtA"), 1: on("dvtB")})
    assert codes(ranks) == [0, 0], ranks
    assert ranks[0].report["reference"] == "equal"


@pytest.fixture
def pasted(llama, hosts, tmp_path):
    """Pastes the line of each host in its namespace, by torchrun; how each ended: (exit code, stdout, stderr)."""

    def paste(plan, *options, stop=None):
        staged = plans.write(tmp_path / "plan.json", plan)
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        devctl = [
            sys.executable,
            "-m",
            "devctl",
            "load",
            str(llama),
            "--map",
            str(staged),
            "--launch",
            "print",
            *options,
        ]
        printed = subprocess.run(
            [*devctl, "--master-addr", "10.77.9.1"], capture_output=True, text=True, env=environment, check=True
        ).stdout.splitlines()
        started = []
        for name, line in zip(HOSTS, printed, strict=True):
            program, *arguments = shlex.split(line)
            assert program == "torchrun"
            command = ["ip", "netns", "exec", name, sys.executable, "-m", "torch.distributed.run", *arguments]
            files = [(tmp_path / f"{name}.{kind}").open("w+") for kind in ("out", "err")]
            started.append((subprocess.Popen(command, stdout=files[0], stderr=files[1], env=environment), *files))
        if stop is not None:
            stop(started)
        ended = []
        for process, *files in started:
            code = process.wait(240)
            texts = []
            for file in files:
                file.seek(0)
                texts.append(file.read())
                file.close()
            ended.append((code, *texts))
        return ended

    return paste


@pytest.mark.slow
def test_pasted_lines_run_unlike_numbers_of_ranks_on_two_hosts(llama, pasted):
    plan = plans.document(llama, (1, 1, 2), "aab")
    first, second = pasted(plan, "--json")
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    report = json.loads(first[1])
    assert report["reference"] == "equal"
    assert [(row["host"], row["layers"]) for row in report["ranks"]] == [("a", [0, 1]), ("a", [1, 2]), ("b", [2, 4])]
    assert second[1] == ""


@pytest.mark.slow
def test_a_pasted_rank_that_stops_ends_both_hosts(llama, pasted):
    """One that is stopped as a whole, its watching process too, with a link that is there."""

    def stop(started):
        # whichever process of the second host is a rank: torchrun's child, or its child
        end = time.monotonic() + 120
        while time.monotonic() < end:
            found = [
                pid for pid in _below(started[1][0].pid) if b"--distributed" in _read(Path(f"/proc/{pid}/cmdline"))
            ]
            ranks = [pid for pid in found if b"torch.distributed.run" not in _read(Path(f"/proc/{pid}/cmdline"))]
            if len(ranks) == 2:
                for pid in ranks:
                    os.kill(pid, signal.SIGSTOP)
                return
            time.sleep(0.05)
        raise AssertionError("no rank came")

    plan = plans.document(llama, (1, 3), "ab")
    (code, _, said), (other, _, _) = pasted(plan, *SHORT, stop=lambda started: _ended(stop, started))
    assert code == 1  # torchrun's own
    assert other != 0
    assert "devctl: rank 1 on b: " in said
    assert "exitcode  : 5" in said


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [0, 1], ids=["the first", "the second"])
def test_a_host_that_stops_as_a_whole_ends_the_other_which_names_it(llama, tmp_path, stopped):
    """Its launcher, which may be where all ranks meet, its rank, and what watches that: nothing of it says a word."""
    plan = plans.write(tmp_path / "plan.json", plans.document(llama, (1, 3), "ab"))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    options = ["--join-timeout", "12s", "--step-timeout", "20s"]
    port, said, started = free_port(), tmp_path / "said", []
    for number in range(2):
        where = ["--nnodes", "2", "--node-rank", number, "--nproc-per-node", "1", "--master-addr", "127.0.0.1"]
        rank = ["-m", "devctl", "load", llama, "--map", plan, "--distributed", *options]
        command = [sys.executable, "-m", "torch.distributed.run", *where, "--master-port", port, *rank]
        with (said if number != stopped else tmp_path / "nothing").open("w") as file:
            started.append(subprocess.Popen(list(map(str, command)), stdout=file, stderr=file, env=environment))
    try:
        end = time.monotonic() + 200
        while len(found := _below(started[stopped].pid)) < 3 and time.monotonic() < end:
            time.sleep(0.05)
        assert len(found) == 3, "no rank came"
        for pid in reversed(found):
            os.kill(pid, signal.SIGSTOP)
        assert started[1 - stopped].wait(200) == 1  # torchrun's own
    finally:
        for pid in [pid for process in started for pid in _below(process.pid)]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in started:
            process.wait()
    text = said.read_text()
    assert f"devctl: rank {stopped} on {'ab'[stopped]}: " in text
    assert "exitcode  : 5" in text


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_the_line_of_one_host_alone_ends_in_time(llama, tmp_path, number):
    """No rank is started before the launchers have met, so that it is torchrun which has to end."""
    plan = plans.write(tmp_path / "plan.json", plans.document(llama, (1, 3), "ab"))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    load = [sys.executable, "-m", "devctl", "load", str(llama), "--map", str(plan), "--launch", "print"]
    printed = subprocess.run(
        [*load, "--master-addr", "127.0.0.1", "--master-port", str(free_port()), "--join-timeout", "3s"],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    ).stdout.splitlines()
    program, *arguments = shlex.split(printed[number])
    assert program == "torchrun"
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        timeout=240,
    )
    assert done.returncode == 1
    assert ("connect to (127.0.0.1" if number else "1/2 clients joined") in done.stderr


def _ended(stop, started):
    """Stop a host's rank, and end its launcher once the other host has ended: nothing there can do so by itself."""
    stop(started)
    started[0][0].wait(200)
    for pid in _below(started[1][0].pid):
        os.kill(pid, signal.SIGKILL)


def _below(pid):
    """A process and all below it."""
    found = [pid]
    for path in Path("/proc").glob("[0-9]*/stat"):
        fields = _read(path).rpartition(b")")[2].split()
        if fields and int(fields[1]) == pid:
            found += _below(int(path.parent.name))
    return found


@pytest.mark.slow
def test_a_link_that_is_cut_ends_both_hosts(launch, llama, plan, hosts, tmp_path):
    cut = [fault("cut", namespace="dvtB", device="dvtb")]
    ranks = launch(llama, plan, *SHORT, address="10.77.9.1", own={0: on("dvtA"), 1: {**on("dvtB"), "faults": cut}})
    assert codes(ranks) == [5, 5], ranks
    assert f"rank 1 on b: no sign of life {SILENCE}" in ranks[0].err
    assert "is that host on" in ranks[0].err
    assert f"rank 0 on a: no answer {SILENCE}" in ranks[1].err
    assert all(rank.seconds < 60 for rank in ranks)


@pytest.mark.slow
def test_an_interrupted_rank_says_so_to_the_others(launch, llama, plan, tmp_path):
    interrupted = [fault("interrupted_in_generate", pid=str(tmp_path / "pid-1"))]
    ranks = launch(llama, plan, own=own(1, faults=interrupted))
    assert codes(ranks) == [5, 130]
    assert "rank 1 on b: it was interrupted" in ranks[0].err


@pytest.mark.slow
def test_nothing_is_left_behind(launch, llama, plan):
    launch(llama, plan, own=own(1, faults=[fault("in_generate", do="die")]))
    end = time.monotonic() + 30
    while (left := orphans()) and time.monotonic() < end:
        time.sleep(0.1)
    assert not left


def orphans():
    """Processes of ranks whose parent is neither the warm one nor a rank."""
    lines = {int(path.parent.name): _read(path) for path in Path("/proc").glob("[0-9]*/cmdline")}
    ranks = [pid for pid, line in lines.items() if b"tests.distributed.warm" in line]
    parents = {pid: _read(Path(f"/proc/{pid}/stat")).rpartition(b")")[2].split() for pid in ranks}
    return [pid for pid, stat in parents.items() if stat and int(stat[1]) == 1 and stat[0] != b"Z"]


def _read(path):
    try:
        return path.read_bytes()
    except OSError:
        return b""
