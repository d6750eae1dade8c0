"""What the pages for users show, run as a reader would run it: in a shell, on a terminal of 80 columns without colour.

A `console` block is lines of ``$ command`` with what each prints, to the letter. Where ``figures`` is behind the word,
seconds, rates and measured peaks differ from run to run: only the rest is compared. Other blocks are not run.

The blocks of a page run in their order, in one folder with `tests/configs` and, where a command names ``models/NAME``,
the small model of that name from `tests/small_models.py`, with random weights.

A comment ``<!-- devctl … --svg PATH -->`` names the command that draws the picture at that path.

``python -m tests.docs`` says which blocks and pictures show something else than what is printed and drawn, and exits
with 1 if there are any; ``--write`` writes the pages and pictures anew.
"""

import argparse
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("**/*.md")])
COLUMNS, LINES = 80, 24
SECONDS = 300
"""The most that a block may take."""

_FENCED = re.compile(r"^```console( figures)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_DRAWN = re.compile(r"^<!-- (devctl .* --svg (\S+)) -->$", re.MULTILINE)
_COMMAND = re.compile(r"^\$ ((?:.*\\\n)*.*)\n", re.MULTILINE)
_SEPARATOR = "\x1e"
_OURS = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TMPDIR")
"""What a block gets of the environment of whoever runs it."""


@dataclass(frozen=True, slots=True)
class Block:
    """What is shown between two fences, at ``start`` to ``end`` in its page: ``exact``, or but for its figures."""

    shown: str
    start: int
    end: int
    exact: bool

    @property
    def commands(self) -> list[str]:
        """What is typed, in order."""
        return _COMMAND.findall(self.shown)

    def holds(self, printed: str) -> bool:
        """Whether what was printed is what is shown."""
        return self.shown == printed if self.exact else without_figures(self.shown) == without_figures(printed)


def blocks(text: str) -> list[Block]:
    """The blocks of a page that are run."""
    return [Block(found[2], found.start(2), found.end(2), found[1] is None) for found in _FENCED.finditer(text)]


def without_figures(text: str) -> str:
    """``text`` without what differs from run to run and by CPU: seconds, rates, measured peaks, free memory."""
    text = re.sub(r"about [0-9,]+ tokens", "about # tokens", text)  # each thread of the CPU takes some memory
    text = re.sub(r"[0-9.e+]+ (ms|s|tokens/s|[KMG]iB/s|[KMG]iB host peak)\b", "#", text)
    text = re.sub(r"peak [0-9.]+ MiB on cpu,\s[0-9.]+ MiB predicted", "#", text)  # kernels differ by processor
    return re.sub(r"[0-9.]+ MiB +[0-9.]+ MiB +[-+][0-9.]+%", "#", text)


def run(block: Block, folder: Path) -> str:
    """The block as a terminal shows it, with what its commands print in ``folder``.

    Raises:
        TimeoutError: it takes too long.
    """
    for name in re.findall(r"\bmodels/([\w.-]+)", "\n".join(block.commands)):
        _make(name, folder / "models" / name)
    script = "".join(f"was=$?; printf '\\036'; (exit $was)\n{command}\n" for command in block.commands)
    printed = _on_terminal(["sh", "-c", script], folder).split(_SEPARATOR)[1:]
    assert len(printed) == len(block.commands), f"{folder}: the shell ended early:\n{printed}"
    return "".join(f"$ {command}\n{said}" for command, said in zip(block.commands, printed, strict=True))


def run_page(text: str, folder: Path) -> list[str]:
    """What each block of the page shows, when all are run in a folder of their own."""
    (folder / "tests").mkdir()
    (folder / "tests/configs").symlink_to(ROOT / "tests/configs")
    (folder / "models").mkdir()
    return [run(block, folder) for block in blocks(text)]


def pictures(text: str) -> list[tuple[str, Path]]:
    """The pictures that a page has drawn: the command, and the path from the root."""
    return [(command, Path(path)) for command, path in _DRAWN.findall(text)]


def draw(command: str, path: Path, folder: Path) -> str:
    """What the command draws in ``folder``, where `run_page` has been."""
    (folder / path).parent.mkdir(exist_ok=True)
    said = _on_terminal(["sh", "-c", command], folder)
    assert (folder / path).exists(), said
    return (folder / path).read_text(encoding="utf-8")


def _make(name: str, folder: Path) -> None:
    """Save the small model of that name, if it is not there."""
    if folder.exists():
        return
    from tests import small_models

    small_models.save(name, folder)


def _on_terminal(command: list[str], folder: Path) -> str:
    """All that ``command`` writes to a terminal that shows no colours and moves no cursor."""
    ours, theirs = pty.openpty()
    try:
        import fcntl
        import termios

        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=_environment(folder),
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
    finally:
        os.close(theirs)
    late = threading.Timer(SECONDS, os.killpg, (process.pid, signal.SIGKILL))  # what it has started, too
    late.start()
    try:
        printed = _read_all(ours)
        process.wait()
    finally:
        late.cancel()
        os.close(ours)
    if process.returncode < 0:
        raise TimeoutError(f"{command} took more than {SECONDS} seconds, or was killed, after it had said: {printed}")
    return printed.replace("\r\n", "\n")


def _read_all(descriptor: int) -> str:
    """What is written to a terminal until nobody has it open any more."""
    parts = []
    while True:
        try:
            part = os.read(descriptor, 65536)
        except OSError:  # how Linux tells that the other end is closed
            break
        if not part:  # how macOS does
            break
        parts.append(part)
    return b"".join(parts).decode()


def _environment(folder: Path) -> dict[str, str]:
    """A reader's environment: the same on every machine, with the devctl of this tree."""
    here = {name: os.environ[name] for name in _OURS if name in os.environ}
    return {
        **here,
        # of its own, so that nothing is shown that rests on what a reader has not asked before
        "DEVCTL_CACHE_DIR": str(folder / ".cache"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{here.get('PATH', os.defpath)}",
        "PYTHONPATH": str(ROOT),
        "HOME": str(folder),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "COLUMNS": str(COLUMNS),
        "LINES": str(LINES),
        "TERM": "dumb",
        "LC_ALL": "C.UTF-8",
        "PYTHONUTF8": "1",
    }


def renew(page: Path, write: bool) -> int:
    """How many blocks and pictures of ``page`` differ from what is printed and drawn; ``write`` writes them anew."""
    text = page.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        printed = run_page(text, Path(folder))
        drawn = [(command, ROOT / path, draw(command, path, Path(folder))) for command, path in pictures(text)]
    changed = [(block, now) for block, now in zip(blocks(text), printed, strict=True) if not block.holds(now)]
    old = [(command, path, now) for command, path, now in drawn if not path.exists() or path.read_text("utf-8") != now]
    for command in (*(block.commands[0] for block, _ in changed), *(command for command, _, _ in old)):
        print(f"{page}: {command}")
    if write:
        for block, now in reversed(changed):
            text = text[: block.start] + now + text[block.end :]
        page.write_text(text, encoding="utf-8")
        for _, path, now in old:
            path.write_text(now, encoding="utf-8")
    return len(changed) + len(old)


def main() -> int:
    """Run all pages, or those that are named."""
    parser = argparse.ArgumentParser(prog="python -m tests.docs", description=__doc__.partition("\n")[0])
    parser.add_argument("pages", nargs="*", type=Path, default=PAGES, help="all of README.md and docs/, unless given")
    parser.add_argument("--write", action="store_true", help="write what is printed into the pages")
    arguments = parser.parse_args()
    different = sum(renew(page, arguments.write) for page in arguments.pages)
    return 1 if different and not arguments.write else 0


if __name__ == "__main__":
    sys.exit(main())
