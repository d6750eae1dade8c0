"""Whether the installed planner is one whose maps are known to be devctl's, found out without importing it."""

import shutil
import subprocess
import sys

import pytest

from devctl.models import compared
from devctl.models.cache import load_comparison, store_comparison
from devctl.models.compared import is_compared, keep_comparison, planner_source

KEY = "0" * 64


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Copies of the files that decide, in the places where they are installed."""
    here = {name: compared._folder(name) for name in ("transformers", "accelerate")}
    for name, parts in (("transformers", ("integrations", "quantizers")), ("accelerate", ("utils",))):
        for part in parts:
            (tmp_path / name / part).mkdir(parents=True)
            for path in (here[name] / part).glob("*.py"):
                shutil.copy(path, tmp_path / name / part)
    monkeypatch.setattr(compared, "_folder", lambda name: tmp_path / name)
    monkeypatch.setenv("DEVCTL_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path


def change(path):
    path.write_text(path.read_text() + "\n# changed\n")


@pytest.mark.parametrize("quantised", [False, True])
def test_the_release_that_the_tests_compare_is_known(quantised):
    assert planner_source(quantised=quantised).is_known, "after a move of the pins: compare, then add its digests"


@pytest.mark.parametrize("quantised", [False, True])
def test_a_known_planner_needs_no_comparison(installed, quantised):
    assert is_compared(KEY, quantised=quantised)


def test_another_planner_does_until_it_was_compared(installed):
    change(installed / "transformers/integrations/accelerate.py")
    assert not is_compared(KEY, quantised=False)
    keep_comparison(KEY, quantised=False, equal=True)
    assert is_compared(KEY, quantised=False)
    assert not is_compared("1" * 64, quantised=False), "of another model nothing is known"
    change(installed / "transformers/integrations/accelerate.py")
    assert not is_compared(KEY, quantised=False), "nor of yet another planner"


def test_a_model_that_is_planned_otherwise_is_asked_about_each_time(installed):
    keep_comparison(KEY, quantised=False, equal=False)
    assert not is_compared(KEY, quantised=False)
    assert is_compared("1" * 64, quantised=False)
    keep_comparison(KEY, quantised=False, equal=True)
    assert is_compared(KEY, quantised=False)


def test_quantizers_matter_to_quantised_models(installed):
    change(installed / "transformers/quantizers/base.py")
    assert is_compared(KEY, quantised=False)
    assert not is_compared(KEY, quantised=True)


def test_of_accelerate_only_what_the_planner_calls_matters(installed):
    path = installed / "accelerate/utils/modeling.py"
    text = path.read_text()
    path.write_text(text.replace("def get_balanced_memory(", "def get_unbalanced_memory("))
    assert is_compared(KEY, quantised=False)
    path.write_text(text.replace("elif size == max_size:", "elif size >= max_size:"))
    assert path.read_text() != text
    assert not is_compared(KEY, quantised=False)


@pytest.mark.parametrize(
    "path", ["transformers/integrations/accelerate.py", "accelerate/utils/modeling.py", "transformers/quantizers"]
)
def test_a_planner_that_is_not_found_is_not_compared(installed, path):
    gone = installed / path
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    keep_comparison(KEY, quantised=True, equal=path == "transformers/quantizers")
    assert not is_compared("1" * 64, quantised=True)


@pytest.mark.parametrize("text", ["x = 1\n", "\xff"])
def test_code_that_is_not_as_it_used_to_be_is_not_compared(installed, text):
    (installed / "accelerate/utils/modeling.py").write_bytes(text.encode("latin-1"))
    assert planner_source(quantised=False) is None
    assert not is_compared(KEY, quantised=False)


def test_a_model_that_has_no_key_is_not_compared(installed):
    keep_comparison(None, quantised=False, equal=True)
    assert not is_compared(None, quantised=False)
    assert not (installed / "cache").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"equal": 1}', '{"equal": null}', "{}", "[" * 100000])
def test_a_comparison_that_can_not_be_read_is_none(installed, text):
    store_comparison(KEY, equal=True)
    (path,) = (installed / "cache").iterdir()
    path.write_text(text)
    assert load_comparison(KEY) is None


def test_nothing_heavy_is_imported():
    code = (
        "import sys; from devctl.models.compared import planner_source\n"
        "assert planner_source(quantised=True) is not None\n"
        "print(*sorted({'torch', 'transformers', 'accelerate', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_package_that_is_not_there_is_told_from_one_that_is(monkeypatch):
    assert (compared._folder("transformers") / "integrations").is_dir()
    monkeypatch.setattr(compared.importlib.util, "find_spec", lambda _: None)
    assert planner_source(quantised=False) is None
