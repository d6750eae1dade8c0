"""Files that are written whole or not at all."""

import os
import resource
import stat
from pathlib import Path

import pytest

from devctl.errors import OutputError, UsageError
from devctl.writing import write_whole


@pytest.fixture
def small_disk():
    """No file may grow beyond 1000 bytes: a write fails half-way, as on a disk that gets full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def umask():
    before = os.umask(0o027)
    yield
    os.umask(before)


def names(folder):
    return [path.name for path in folder.iterdir()]


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_a_write_that_fails_half_way_leaves_the_old_file_and_nothing_else(tmp_path, small_disk):
    path = tmp_path / "map.json"
    write_whole(path, "old")
    with pytest.raises(OutputError, match=r"cannot write .*map\.json: File too large"):
        write_whole(path, "new" * 1000)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["map.json"]


def test_a_first_write_that_fails_half_way_leaves_nothing(tmp_path, small_disk):
    with pytest.raises(OutputError):
        write_whole(tmp_path / "map.json", "new" * 1000)
    assert names(tmp_path) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_one_that_fails_at_its_end_too(tmp_path, monkeypatch, error):
    def fails(self, target):
        raise error

    path = tmp_path / "map.json"
    write_whole(path, "old")
    monkeypatch.setattr(Path, "replace", fails)
    with pytest.raises((KeyboardInterrupt, OutputError)):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["map.json"]


def test_text_that_is_no_unicode_leaves_the_old_file(tmp_path):
    path = tmp_path / "map.json"
    write_whole(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "\udcff")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["map.json"]


def test_a_full_device():
    with pytest.raises(OutputError, match="cannot write /dev/full: No space left on device"):
        write_whole(Path("/dev/full"), "new")


def test_a_new_file_has_what_the_umask_leaves(tmp_path, umask):
    write_whole(tmp_path / "map.json", "new")
    assert mode(tmp_path / "map.json") == 0o640


@pytest.mark.parametrize("given", [0o600, 0o444, 0o666])
def test_a_file_that_was_there_keeps_its_mode(tmp_path, umask, given):
    path = tmp_path / "map.json"
    path.write_text("old")
    path.chmod(given)
    write_whole(path, "new")
    assert (path.read_text(), mode(path)) == ("new", given)


def test_what_is_private_is_so_from_its_first_byte(tmp_path, monkeypatch):
    path = tmp_path / "map.json"
    path.write_text("old")
    path.chmod(0o600)
    asked = []

    def opens(name, flags, given=0o777):
        asked.append(given)
        return real(name, flags, given)

    real = os.open
    monkeypatch.setattr(os, "open", opens)
    write_whole(path, "new")
    assert asked == [0o600]


def test_the_umask_is_never_set(tmp_path, monkeypatch):
    """It is the process's, so that files of other threads would have it too."""
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("the umask was set"))
    write_whole(tmp_path / "map.json", "new")


def test_names_of_temporary_files_can_not_be_guessed(tmp_path, monkeypatch):
    written = []
    real = Path.replace

    def replaces(self, target):
        written.append(self)
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replaces)
    for _ in range(2):
        write_whole(tmp_path / "map.json", "new")
    assert len(set(written)) == 2
    assert {path.parent for path in written} == {tmp_path}


def test_a_temporary_file_never_goes_through_a_link_that_waits_for_it(tmp_path, monkeypatch):
    monkeypatch.setattr("secrets.token_hex", lambda size: "0")
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / ".devctl-0").symlink_to(victim)
    with pytest.raises(OutputError, match="File exists"):
        write_whole(tmp_path / "map.json", "new")
    assert victim.read_text() == "mine"


def test_a_link_is_followed_and_stays(tmp_path):
    (tmp_path / "link").symlink_to("map.json")
    for text in ("first", "second"):
        write_whole(tmp_path / "link", text)
        assert (tmp_path / "map.json").read_text() == text
    assert (tmp_path / "link").is_symlink()


def test_a_link_to_itself(tmp_path):
    (tmp_path / "link").symlink_to("link")
    with pytest.raises(OutputError, match="Too many levels of symbolic links"):
        write_whole(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("path", ["absent/map.json", "file/map.json", "."])
def test_a_path_that_can_not_be_a_file(tmp_path, path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write"):
        write_whole(tmp_path / path, "new")


def test_the_longest_name(tmp_path):
    write_whole(tmp_path / ("x" * 255), "new")
    assert (tmp_path / ("x" * 255)).read_text() == "new"


def test_the_bytes_are_utf_8_and_nothing_is_added(tmp_path):
    write_whole(tmp_path / "map.json", "80 × 2\n")
    assert (tmp_path / "map.json").read_bytes() == "80 × 2\n".encode()
