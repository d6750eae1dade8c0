"""Which room imports which, and what a command may import."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import devctl
from devctl.inventory.probes import host, pci
from tests import gguf_files
from tests.marks import slow

PACKAGE = Path(devctl.__file__).parent

MAY_IMPORT = {
    "devices": set(),
    "inventory": {"devices"},
    "models": set(),
    "placement": {"devices", "inventory.records", "models.tree", "models.footprint", "models.sharding"},
    "loading": {"devices", "models", "placement"},
    "export": {"devices", "placement"},
    "planning": {"devices", "inventory", "models", "placement", "export"},
    "trying": {"devices", "inventory", "models", "placement", "loading", "planning"},
    "distributed": {"devices", "models", "placement", "loading", "planning"},
    "api": {"devices", "inventory", "models", "placement", "loading", "planning", "trying"},
    "completion": set(),
    "cli": {"devices", "inventory", "models", "placement", "loading", "planning", "trying", "distributed", "export"}
    | {"api", "completion"},
}
WINGS = {
    "inventory": {"probes"},
    "models": {"files", "gguf", "quantised", "tracing"},
    "placement": {"engines", "greedy", "optimal", "parallel"},
    "loading": {"weights", "run", "proofs"},
    "planning": {"examining"},
    "cli": {"show"},
}
EVERYONE = {"as_json", "errors", "reading", "units", "writing"}
OUTSIDE = {"__init__", "__main__", *EVERYONE}
HEAVY = {"torch", "transformers", "accelerate", "pydantic"}


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        yield ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"), path


def imports(path):
    """Dotted names below devctl that a file imports, wherever it does."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name.removeprefix("devctl.") for name in names if name.startswith("devctl."))


@pytest.mark.parametrize(("name", "path"), [(n, p) for n, p in modules() if n.partition(".")[0] not in OUTSIDE])
def test_rooms_import_what_they_may(name, path):
    room = name.partition(".")[0]
    allowed = MAY_IMPORT[room] | EVERYONE | {room}
    for imported in set(imports(path)) - {"__version__"}:
        assert any(imported == a or imported.startswith(a + ".") for a in allowed), f"{name} imports {imported}"


@pytest.mark.parametrize("name", sorted(EVERYONE))
def test_what_everyone_imports_needs_no_room(name):
    assert {imported.partition(".")[0] for imported in imports(PACKAGE / f"{name}.py")} <= {"devices", "errors"}


def test_every_room_is_in_the_table():
    rooms = {name.partition(".")[0] for name, _ in modules()} - OUTSIDE
    assert rooms == set(MAY_IMPORT)


def test_every_wing_is_in_the_table():
    folders = {path.parent.relative_to(PACKAGE) for _, path in modules()}
    wings = {}
    for folder in folders:
        if len(folder.parts) > 1:
            assert len(folder.parts) == 2, f"{folder}: a wing has no wings"
            wings.setdefault(folder.parts[0], set()).add(folder.parts[1])
    assert wings == WINGS


def test_no_file_needs_one_that_needs_it():
    paths = dict(modules())
    needs = {name: set() for name in paths}
    for name, path in paths.items():
        for imported in imports(path):
            # `from devctl.room import name` means the file of that name, else what the room's own file defines
            found = next((m for m in (imported, imported.rpartition(".")[0]) if m in paths), None)
            if found is not None and found != name:
                needs[name].add(found)
    assert not circle(needs)


def test_no_function_takes_more_than_twelve_parameters():
    for name, path in modules():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and name != "api":
                taken = node.args
                count = len([*taken.posonlyargs, *taken.args, *taken.kwonlyargs])
                assert count <= 12, f"{name}.{node.name} takes {count}"


def circle(needs):
    """Names that lead from one back to itself, if any do."""
    done = set()

    def walk(name, way):
        if name in way:
            return [*way[way.index(name) :], name]
        if name in done:
            return []
        for other in sorted(needs[name]):
            if found := walk(other, [*way, name]):
                return found
        done.add(name)
        return []

    return next((found for name in sorted(needs) if (found := walk(name, []))), [])


def test_a_circle_is_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


@pytest.mark.parametrize("room", ["placement", "inventory", "devices"])
def test_pure_rooms_know_no_torch(room):
    for name, path in modules():
        if name.partition(".")[0] != room:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                found = {node.module.partition(".")[0]}
            elif isinstance(node, ast.Import):
                found = {alias.name.partition(".")[0] for alias in node.names}
            else:
                continue
            # devices imports torch inside the functions that convert to it
            assert found.isdisjoint(HEAVY) or room == "devices", f"{name} imports {found}"


def modules_after(*args, **env):
    """Top-level modules that a fresh interpreter has after running a command, and its output."""
    code = (
        "import sys, atexit\n"
        "atexit.register(lambda: print('MODULES', *{m.partition('.')[0] for m in sys.modules}, file=sys.stderr))\n"
        "from devctl.cli import main\n"
        f"sys.argv = {['devctl', *args]!r}\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env={**os.environ, **env}
    )
    line = next(line for line in done.stderr.splitlines() if line.startswith("MODULES"))
    return set(line.split()), done.stdout


@pytest.mark.parametrize(
    "args",
    [
        ["list"],
        ["plan", "--help"],
        *slow(["list", "--json"], ["--help"], ["plan", "--devices", "help"], ["load", "--help"], ["--version"]),
    ],
    ids=" ".join,
)
def test_commands_that_import_no_framework(args):
    found, out = modules_after(*args)
    assert out
    assert found.isdisjoint(HEAVY)


def test_a_plan_of_a_gguf_file_needs_no_framework(tmp_path):
    path = gguf_files.write(tmp_path / "m.gguf")
    found, out = modules_after("plan", str(path), "--devices", "2x24GiB", "--context-length", "4k")
    assert '"blk.3"' in out
    assert found.isdisjoint(HEAVY | {"numpy", "gguf"})


def test_json_needs_no_rich():
    assert "rich" not in modules_after("list", "--json")[0]


def test_the_cpu_is_listed_without_psutil_where_the_system_tells_it_all():
    tells = host.parse_meminfo(pci.read(Path("/proc/meminfo")) or "") and host.physical_cores()
    assert ("psutil" in modules_after("list", "--only", "cpu")[0]) == (not tells)


def test_completion_imports_no_framework():
    found, out = modules_after(_DEVCTL_COMPLETE="complete_bash", COMP_WORDS="devctl pl", COMP_CWORD="1")
    assert out.split() == ["plan"]
    assert found.isdisjoint(HEAVY | {"psutil", "pynvml"})
