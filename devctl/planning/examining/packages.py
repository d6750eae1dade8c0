"""Which distributions are installed: their versions, what devctl asks of them, and who else calls itself devctl."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata

import devctl
from devctl.planning.examining.findings import Finding, broken, note, ok
from devctl.planning.examining.private import Private

NAMES = (
    "torch",
    "transformers",
    "accelerate",
    "huggingface_hub",
    "safetensors",
    "tokenizers",
    "numpy",
    "nvidia-ml-py",
    "psutil",
    "rich",
    "typer",
)
"""What devctl runs on; a report names the version of each."""

OPTIONAL = ("bitsandbytes", "torchao", "optimum-quanto", "kernels", "flash-attn", "peft", "gguf", "vllm", "sglang")
"""What changes how a model loads; a report names those that are there."""

_OURS = "devctl.__main__:main"
_NEEDS = "nvidia-ml-py"
"""What our distribution installs as the command, and one of those that it asks for, whatever it is called."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """A distribution that installs a package, or a command, called devctl.

    Attributes:
        ours: whether its command is this one.
    """

    name: str
    version: str
    ours: bool
    requirements: tuple[str, ...] = ()


def versions() -> dict[str, str | None]:
    """The version of each package of `NAMES`, None for what is not installed, and of those of `OPTIONAL` that are."""
    known: dict[str, str | None] = {name: version_of(name) for name in NAMES}
    return known | {name: version for name in OPTIONAL if (version := version_of(name)) is not None}


def version_of(name: str) -> str | None:
    """The version of an installed distribution; None where there is none, or none that can be read."""
    try:
        return metadata.version(name)
    except (metadata.PackageNotFoundError, KeyError, ValueError):  # a damaged installation has no version
        return None


def owners(distributions: Iterable[metadata.Distribution] | None = None) -> tuple[Owner, ...]:
    """Whoever installs the import package ``devctl``, or a command of that name; in the order of their names.

    A link to a source tree installs no file of the package: such a one is told by its command.
    """
    found: dict[tuple[str, bool], Owner] = {}
    for each in metadata.distributions() if distributions is None else distributions:
        try:
            said = each.metadata
            name = said["Name"] if "Name" in said else ""  # noqa: SIM401 - it promises no get
            commands = [e.value for e in each.entry_points if e.group == "console_scripts" and e.name == "devctl"]
            files = any(path.parts and path.parts[0] in ("devctl", "devctl.py") for path in each.files or ())
            listed = "devctl" in (each.read_text("top_level.txt") or "").split()
            version = said["Version"] if "Version" in said else ""  # noqa: SIM401
            requirements = tuple(each.requires or ())
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
        ):  # a damaged one owns nothing that can be told
            continue
        if not name or not (commands or files or listed):
            continue
        ours = _OURS in commands and any(text.startswith(_NEEDS) for text in requirements)
        # the one that is found first is the one that is imported; another of our own behind it does no harm
        found.setdefault((name, ours), Owner(name=name, version=version, ours=ours, requirements=requirements))
    return tuple(found[each] for each in sorted(found))


def judge_owners(found: tuple[Owner, ...], private: Private) -> Finding:
    """Whether the import package ``devctl`` is ours alone."""
    text = f"{devctl.__version__}"
    if len(found) > 1:
        names = ", ".join(f"{owner.name} {owner.version}" for owner in found)
        ours = [owner for owner in found if owner.ours]
        now = [owner for owner in ours if owner.version == devctl.__version__]
        keep = next((owner.name for owner in (*now, *ours)), "this one")
        others = " ".join(dict.fromkeys(owner.name for owner in found))
        text = private.hide(f"{text}: {len(found)} distributions install the package devctl, over each other: {names}")
        hint = private.hide(f"`pip uninstall {others}`, then install {keep} alone")
        # two of our own, by an older name and the one of today, hold the same until one of them is removed
        return note("devctl", text, hint) if len(ours) == len(found) else broken("devctl", text, hint)
    if not found:
        return note("devctl", f"{text}: it is not installed, but run from its source")
    if not found[0].ours:
        text = f"{text}: the package devctl that is installed is another one, of {found[0].name} {found[0].version}"
        return broken("devctl", private.hide(text), f"`pip uninstall {found[0].name}`, then install this one")
    if found[0].version != devctl.__version__:
        text = f"{text}, and what is installed says {found[0].version}"
        return note("devctl", text, "install it anew: its source has changed since")
    return ok("devctl", text)


def judge_python() -> Finding:
    """The interpreter, and the system that it runs on, without the names of either's builder."""
    import platform

    version = ".".join(map(str, sys.version_info[:3]))
    on = f"{platform.python_implementation()} on {platform.system()} {platform.machine()}"
    libc = " ".join(part for part in platform.libc_ver() if part)
    wsl = ", in WSL" if "microsoft" in platform.release().casefold() else ""
    text = f"{version}, {on}{f', {libc}' if libc else ''}{wsl}"
    if sys.maxsize < 2**32:
        return broken("python", f"{text}, of 32 bits", "install a Python of 64 bits: there is no torch for this one")
    return ok("python", text)


def judge_versions(found: Mapping[str, str | None], owner: Owner | None) -> list[Finding]:
    """The packages that devctl runs on in one line, and each that is missing or of a version that it does not take."""
    present = ", ".join(f"{name} {version}" for name, version in found.items() if version is not None)
    wrong = [] if owner is None else _unmet(owner.requirements, found)
    missing = [name for name, version in found.items() if version is None and name not in {f.subject for f in wrong}]
    findings = [ok("packages", present)] if present else []
    if owner is None and missing:
        findings.append(note("packages", f"not installed: {', '.join(missing)}", f"`pip install {' '.join(missing)}`"))
    return findings + wrong


def _unmet(requirements: tuple[str, ...], found: Mapping[str, str | None]) -> list[Finding]:
    try:
        from packaging.requirements import InvalidRequirement, Requirement
    except ImportError:  # the hub's library brings it; without it nothing can be compared
        return []
    wrong = []
    for text in requirements:
        try:
            asked = Requirement(text)
        except InvalidRequirement:
            continue
        if asked.marker is not None and not asked.marker.evaluate({"extra": ""}):
            continue
        there = found[asked.name] if asked.name in found else version_of(asked.name)
        install = f'`pip install "{asked.name}{asked.specifier}"`'
        if there is None:
            wrong.append(broken(asked.name, f"is not installed{_without(asked.name)}", install))
        elif not asked.specifier.contains(there, prereleases=True):
            wrong.append(broken(asked.name, f"{there} is installed, and {asked.specifier} is needed", install))
    return sorted(wrong, key=lambda finding: finding.subject)


def _without(name: str) -> str:
    if name in ("torch", "transformers", "accelerate"):
        return ": list and check work without it, plan of a new model and load do not"
    return ""
