"""``python -m tests.boards``: devctl's claims beside what the boards of this machine show.

Runs for --minutes, most telling steps first, and writes evidence/<board>-<date>.json with a page beside it. Run again
it goes on where it was. Needs CUDA torch and transformers, no network. Exits with 0 when the slice is over, 1 when all
steps are and a claim was missed, 2 for wrong usage, and 3 where there is no board.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

import devctl
from devctl.errors import DevctlError
from devctl.writing import write_whole
from tests.boards import private
from tests.boards.child import CHECKOUT, parse_box
from tests.boards.page import page
from tests.boards.records import Box, Evidence, Step, Verdict, parse_evidence
from tests.boards.slices import MARGIN, Exit, Slice, in_order, run_slice
from tests.boards.state import State, folder_of, gather, left, open_state
from tests.boards.steps import STEPS

DESCRIBING = 120
"""Seconds in which torch is imported and the driver has answered."""

ENDING = 20
"""Seconds in which a process ends that was told to."""

ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
"""Variables that change how torch's allocator takes memory: what is claimed is of its default, or says otherwise."""

MOST_MINUTES = 24 * 60
MOST_SAID = 16 * 2**20
_SAID = 300


def child(*arguments: str, on: str) -> list[str]:
    """The command of a process of its own."""
    return [sys.executable, "-m", "tests.boards.child", *arguments, "--on", on]


def environment(cache: Path) -> dict[str, str]:
    """Of such a process: with this checkout, no network, torch's allocator as by default, and a cache of its own."""
    given = {name: value for name, value in os.environ.items() if name not in ALLOCATOR}
    paths = [str(CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])]
    ours = {"PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1", "DEVCTL_CACHE_DIR": str(cache)}
    return {**given, **ours, "TOKENIZERS_PARALLELISM": "false"}


def run_apart(command: Sequence[str], seconds: float, environment: dict[str, str]) -> tuple[Exit, str]:
    """Run a command with all that it starts, and end them after so many seconds; how it ended, and its stdout."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        # files, not pipes: what it leaves behind may hold those open for ever
        process = subprocess.Popen(
            command, stdout=out, stderr=errors, stdin=subprocess.DEVNULL, env=environment, start_new_session=True
        )
        try:
            code: int | None = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(process)
        return Exit(code=code, said=last_words(_tail(errors, 20_000))), _tail(out, MOST_SAID)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End ``process`` and what it started, and wait for it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    # one that a driver holds does not end, and must not hold the others
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=ENDING)


def _tail(file: IO[bytes], most: int) -> str:
    file.seek(0, os.SEEK_END)
    file.seek(max(0, file.tell() - most))
    return file.read().decode(errors="replace")


def last_words(text: str) -> str:
    """The last line of what a process said that is no frame of a traceback."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith(" ")]
    return lines[-1][:_SAID] if lines else ""


def find_box(on: str, environment: dict[str, str]) -> Box:
    """What there is, asked in a process of its own: nothing of a driver may hang or end this one."""
    ended, out = run_apart(child("--describe", on=on), DESCRIBING, environment)
    try:
        return parse_box(out)
    except ValueError:
        how = f"did not answer in {DESCRIBING} s" if ended.code is None else f"ended with {ended.code}"
        return Box(boards=(), versions={}, problem=f"torch could not be asked: it {how} ({ended.said or 'no word'})")


def chosen(steps: Sequence[Step], parts: Sequence[str]) -> tuple[Step, ...]:
    """Those whose name has one of ``parts`` in it; all where none is given."""
    return tuple(step for step in steps if not parts or any(part in step.name for part in parts))


def dry_run(steps: Sequence[Step], minutes: float) -> str:
    """Every step that there is, in the order in which it would run."""
    wide = max((len(step.name) for step in steps), default=0)
    lines = []
    for step in in_order(steps):
        needs = [f"{step.needs.boards} boards"] if step.needs.boards > 1 else []
        needs += [step.needs.package] if step.needs.package else []
        told = f" (needs {', '.join(needs)})" if needs else ""
        lines.append(f"{step.name:{wide}}  {step.seconds:4} s  {step.what}{told}")
    total = sum(step.seconds for step in steps)
    slices = math.ceil(total / 60 / minutes)
    lines.append(f"{len(steps)} steps, about {total / 60:.0f} minutes: {slices} slices of {minutes:g} minutes")
    return "\n".join(lines)


def file_name(box: Box, begun: str) -> str:
    """Of the evidence, without an ending: "nvidia-l4-2026-11-26"."""
    return f"{re.sub(r'[^a-z0-9]+', '-', box.name.lower()).strip('-')[:60]}-{begun}"


def write(evidence: Evidence, folder: Path) -> tuple[Path, Path]:
    """Write the document and the page, without anything private; where they are."""
    cleaned = private.of_this_box().cleaned(finite(evidence.to_document()))
    name = file_name(evidence.box, evidence.begun)
    document, beside = folder / f"{name}.json", folder / f"{name}.md"
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(document, json.dumps(cleaned, indent=1, allow_nan=False) + "\n")
    write_whole(beside, page(parse_evidence(cleaned)))
    return document, beside


def finite(value: object) -> object:
    """JSON values without what JSON has no word for: such a figure is none."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return value


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="python -m tests.boards", description=__doc__.split("\n\n")[0])
    found.add_argument("--minutes", type=float, default=8, help="how long this slice may take (default: 8)")
    found.add_argument("--only", action="append", default=[], metavar="PART", help="steps with this in their name")
    found.add_argument("--again", action="append", default=[], metavar="PART", help="try such steps once more")
    found.add_argument("--out", type=Path, default=Path("evidence"), metavar="FOLDER", help="default: evidence")
    found.add_argument("--dry-run", action="store_true", help="list the steps, and run none")
    # the tests' own: devices that are none
    found.add_argument("--on", default="cuda", choices=("cuda", "simulated"), help=argparse.SUPPRESS)
    return found


def run(given: argparse.Namespace, steps: Sequence[Step], say: Callable[[str], None]) -> int:
    """One slice; its exit code."""
    start = time.monotonic()
    work = given.out / ".boards"
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        say(f"--out {given.out}: it can't be written to: {error.strerror}")
        return 2
    env = environment(work.resolve() / "cache")
    box = find_box(given.on, env)
    if not box.boards:
        with contextlib.suppress(OSError):  # what was there before stays
            work.rmdir()
            given.out.rmdir()
        say(private.of_this_box().clean(f"no board: {box.problem}"))
        say("list the steps with --dry-run")
        return 3
    work.mkdir(parents=True, exist_ok=True)
    state = open_state(
        folder_of(work, box, devctl.__version__), datetime.datetime.now(datetime.UTC).date().isoformat(), STEPS
    )
    for step in chosen(steps, given.again) if given.again else ():
        state.forget(step)

    def launch(step: Step, journal: Path, seconds: float) -> Exit:
        return run_apart(child(step.name, str(journal.resolve()), on=given.on), seconds, env)[0]

    ends = start + 60 * given.minutes - MARGIN
    say(f"{box.name}, torch {box.versions.get('torch')}, transformers {box.versions.get('transformers')}")
    code = 0
    try:
        run_slice(
            steps,
            state,
            box,
            Slice(ends=ends, clock=time.monotonic, launch=launch, say=say),
            disk=shutil.disk_usage(tempfile.gettempdir()).free,
        )
    except KeyboardInterrupt:
        say("interrupted: what was found so far is written")
        code = 130
    evidence = gather(box, state, STEPS)
    for path in write(evidence, given.out):
        say(f"wrote {path}")
    say(told(evidence, state, steps))
    return code or int(not left(state, STEPS) and evidence.counts[Verdict.MISSED] > 0)


def told(evidence: Evidence, state: State, steps: Sequence[Step]) -> str:
    """What there is by now, and what is left."""
    counts = ", ".join(f"{count} {verdict}" for verdict, count in evidence.counts.items())
    rest = left(state, steps)
    if not rest:
        asked = " that was asked for" if left(state, STEPS) else ""
        return f"{counts}; every step{asked} was tried"
    return f"{counts}; {len(rest)} steps are left, about {sum(s.seconds for s in rest) / 60:.0f} minutes: run it again"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; its exit code."""
    found = parser()
    given = found.parse_args(arguments)
    if not 1 <= given.minutes <= MOST_MINUTES:
        found.error(f"--minutes {given.minutes:g}: it can be 1 to {MOST_MINUTES}")
    steps = chosen(STEPS, given.only)
    if not steps:
        found.error(f"--only {' '.join(given.only)}: no step has that in its name; --dry-run lists them")
    if given.again and not chosen(steps, given.again):
        found.error(f"--again {' '.join(given.again)}: no step has that in its name; --dry-run lists them")
    if given.dry_run:
        print(dry_run(steps, given.minutes))
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return run(given, steps, lambda line: print(line, file=sys.stderr, flush=True))
    except DevctlError as error:
        print(error.message, file=sys.stderr)
        return int(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
