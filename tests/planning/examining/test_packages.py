"""Which distributions are installed, and who else calls itself devctl."""

from importlib import metadata

import devctl
from devctl.planning.examining.findings import Level
from devctl.planning.examining.packages import Owner, judge_owners, judge_python, judge_versions, owners, versions
from devctl.planning.examining.private import Private

NEEDS = ("nvidia-ml-py>=12.535",)
OURS = "[console_scripts]\ndevctl = devctl.__main__:main\n"


def installed(folder, name, *, version="1.0", commands="", files=(), requires=()):
    """A distribution as pip leaves it."""
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    asked = "".join(f"Requires-Dist: {each}\n" for each in requires)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{asked}")
    (info / "entry_points.txt").write_text(commands)
    (info / "RECORD").write_text("".join(f"{each},,\n" for each in files))
    for each in files:  # from Python 3.12 on, those that are listed and are not there are none
        (folder / each).parent.mkdir(exist_ok=True)
        (folder / each).touch()


def found_in(folder):
    return owners(metadata.distributions(path=[str(folder)]))


def test_the_distribution_with_our_command_is_ours_whatever_it_is_called(tmp_path):
    installed(
        tmp_path, "devctl-plan", version=devctl.__version__, commands=OURS, requires=NEEDS, files=["devctl/__init__.py"]
    )
    installed(tmp_path, "torch", files=["torch/__init__.py"])
    (owner,) = found_in(tmp_path)
    assert (owner.name, owner.ours) == ("devctl-plan", True)
    assert judge_owners((owner,), Private()).level is Level.OK


def test_a_link_to_a_source_tree_is_told_by_its_command(tmp_path):
    installed(tmp_path, "devctl-plan", commands=OURS, requires=NEEDS, files=["_editable_impl.pth"])
    assert [owner.ours for owner in found_in(tmp_path)] == [True]


def test_another_distribution_that_owns_the_package_is_broken(tmp_path):
    installed(tmp_path, "devctl-plan", commands=OURS, requires=NEEDS, files=["_editable_impl.pth"])
    installed(tmp_path, "devctl", version="0.9", files=["devctl/__init__.py", "devctl/cli.py"])
    finding = judge_owners(found_in(tmp_path), Private())
    assert finding.level is Level.BROKEN
    assert "2 distributions install the package devctl, over each other: devctl 0.9, devctl-plan 1.0" in finding.text
    assert finding.next_step == "`pip uninstall devctl devctl-plan`, then install devctl-plan alone"


def test_another_one_that_has_the_command_alone_is_broken_too(tmp_path):
    installed(tmp_path, "devctl-plan", commands=OURS, requires=NEEDS)
    installed(tmp_path, "device-tools", commands="[console_scripts]\ndevctl = device_tools:main\n")
    assert judge_owners(found_in(tmp_path), Private()).level is Level.BROKEN


def test_another_one_of_our_own_name_is_told_apart_by_its_command(tmp_path):
    installed(tmp_path / "first", "devctl", version="3.1", files=["devctl/__init__.py"])
    installed(tmp_path / "second", "devctl", commands=OURS, requires=NEEDS)
    found = owners(metadata.distributions(path=[str(tmp_path / "first"), str(tmp_path / "second")]))
    finding = judge_owners(found, Private())
    assert finding.level is Level.BROKEN
    assert "devctl 3.1, devctl 1.0" in finding.text
    assert finding.next_step == "`pip uninstall devctl`, then install devctl alone"


def test_two_of_our_own_are_a_note_that_keeps_the_one_of_today(tmp_path):
    installed(tmp_path, "devctl", version="0.0.1", commands=OURS, requires=NEEDS)
    installed(tmp_path, "devctl-plan", version=devctl.__version__, commands=OURS, requires=NEEDS)
    finding = judge_owners(found_in(tmp_path), Private())
    assert finding.level is Level.NOTE
    assert finding.next_step == "`pip uninstall devctl devctl-plan`, then install devctl-plan alone"


def test_one_with_our_command_and_none_of_what_we_ask_for_is_another_one(tmp_path):
    installed(tmp_path, "devctl-plan", commands=OURS, requires=NEEDS)
    installed(tmp_path, "devctl", commands=OURS)
    assert judge_owners(found_in(tmp_path), Private()).level is Level.BROKEN


def test_one_that_names_its_packages_in_a_list_is_seen(tmp_path):
    installed(tmp_path, "old-style")
    (tmp_path / "old-style-1.0.dist-info" / "top_level.txt").write_text("devctl\nother\n")
    (owner,) = found_in(tmp_path)
    finding = judge_owners((owner,), Private())
    assert (finding.level, owner.ours) == (Level.BROKEN, False)
    assert "is another one, of old-style 1.0" in finding.text


def test_a_damaged_distribution_hides_no_other(tmp_path):
    installed(tmp_path, "devctl-plan", commands=OURS, requires=NEEDS)
    (tmp_path / "broken-1.0.dist-info").mkdir()
    (tmp_path / "worse-1.0.dist-info").mkdir()
    (tmp_path / "worse-1.0.dist-info" / "METADATA").write_bytes(b"\xff\xfe")
    (tmp_path / "worse-1.0.dist-info" / "RECORD").write_bytes(b"\xff\xfe,,\n")
    assert [owner.name for owner in found_in(tmp_path)] == ["devctl-plan"]


def test_what_runs_from_its_source_is_a_note():
    assert judge_owners((), Private()).level is Level.NOTE
    old = Owner(name="devctl-plan", version="0.0.1", ours=True)
    assert judge_owners((old,), Private()).level is Level.NOTE


def needs(*requirements):
    return Owner(name="devctl-plan", version="1", ours=True, requirements=requirements)


def test_a_package_of_a_version_that_is_not_taken_is_broken():
    known = {"torch": "2.5.1", "transformers": "5.24.0", "accelerate": None}
    wanted = needs("torch>=2.6", "transformers<6,>=5.14", "accelerate<2,>=1.12", "pytest>=99; extra == 'test'")
    packages, *found = judge_versions(known, wanted)
    assert (packages.level, packages.text) == (Level.OK, "torch 2.5.1, transformers 5.24.0")
    assert [finding.subject for finding in found] == ["accelerate", "torch"]
    assert all(finding.level is Level.BROKEN for finding in found)
    assert "list and check work without it" in found[0].text
    assert found[1].text == "2.5.1 is installed, and >=2.6 is needed"
    assert found[1].next_step == '`pip install "torch>=2.6"`'


def test_builds_and_releases_to_come_are_versions_like_others():
    known = {"torch": "2.9.0a0+git1234", "rich": "13.7"}
    assert [finding.level for finding in judge_versions(known, needs("torch>=2.6", "rich>=13.7"))] == [Level.OK]


def test_a_requirement_that_can_not_be_read_asks_for_nothing():
    assert judge_versions({}, needs("not a requirement at all ===")) == []


def test_what_is_installed_here_is_told():
    known = versions()
    assert known["torch"] == metadata.version("torch")
    assert set(known) >= {"transformers", "accelerate", "huggingface_hub", "nvidia-ml-py"}
    assert judge_python().level is Level.OK
