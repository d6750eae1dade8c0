"""Ranks forked from one warm process."""

import json
import os
import select
import socket
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.distributed import plans

ROOT = Path(__file__).parents[2]


class Ended(NamedTuple):
    code: int
    out: str
    err: str
    seconds: float

    @property
    def report(self):
        return json.loads(self.out)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(autouse=True)
def without_accelerators(monkeypatch):
    """The ranks of these tests run on CPUs, whatever the machine has."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture(scope="session")
def warm():
    """A function that runs ranks, given as dicts, and says how each ended."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "TORCH_CPP_LOG_LEVEL": "FATAL",
        "PYTHONWARNINGS": "ignore",
        "CUDA_VISIBLE_DEVICES": "",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.distributed.warm"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        cwd=ROOT,
        text=True,
    )

    def run(ranks, seconds):
        process.stdin.write(json.dumps({"ranks": ranks, "seconds": seconds}) + "\n")
        process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], seconds + 120)
        assert ready, "the warm process does not answer"
        return json.loads(process.stdout.readline())

    yield run
    process.stdin.close()
    process.wait(30)
    process.stdout.close()


@pytest.fixture(scope="session")
def llama(tmp_path_factory):
    """A small Llama of four layers in four files."""
    return plans.save(tmp_path_factory.mktemp("distributed") / "llama")


@pytest.fixture
def launch(warm, tmp_path):
    """Runs all ranks of a plan, each as ``devctl load … --distributed``; how each ended, by rank.

    ``own`` has, by rank, what that one has of its own: "model", "plan", "options", "faults", "environment", "netns".
    """

    def run(model, plan, *options, own=None, seconds=100, port=None, address="127.0.0.1"):
        # a rank for each accelerator, whether those share a stage or not
        stages = [stage for stage in plan["stages"] for _ in stage["devices"]]
        hosts = list(dict.fromkeys(stage["host"] for stage in stages))
        meeting = port or free_port()
        ranks, on_host = [], {}
        for number, stage in enumerate(stages):
            mine = (own or {}).get(number, {})
            host = stage["host"]
            local = on_host.get(host, 0)
            on_host[host] = local + 1
            file = plans.write(tmp_path / f"plan-{number}.json", mine.get("plan", plan))
            ranks.append(
                {
                    "out": str(tmp_path / f"out-{number}"),
                    "err": str(tmp_path / f"err-{number}"),
                    "pid": str(tmp_path / f"pid-{number}"),
                    "environment": {
                        "GROUP_RANK": str(hosts.index(host)),
                        "LOCAL_RANK": str(local),
                        "WORLD_SIZE": str(len(stages)),
                        "MASTER_ADDR": address,
                        "MASTER_PORT": str(meeting),
                        **mine.get("environment", {}),
                    },
                    "arguments": [
                        "load",
                        str(mine.get("model", model)),
                        "--map",
                        str(file),
                        "--distributed",
                        "--json",
                        *options,
                        *mine.get("options", ()),
                    ],
                    "faults": mine.get("faults", []),
                    "netns": mine.get("netns"),
                }
            )
        ended = warm(ranks, seconds)
        return [
            Ended(each["code"], Path(rank["out"]).read_text(), Path(rank["err"]).read_text(), each["seconds"])
            for rank, each in zip(ranks, ended, strict=True)
        ]

    return run
