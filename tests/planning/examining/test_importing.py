"""What torch is asked of the devices that it sees."""

import pytest

from devctl.planning.examining import importing

torch = pytest.importorskip("torch")


@pytest.fixture
def driver_shows_two(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.usefixtures("driver_shows_two")
@pytest.mark.parametrize("has", [0, 1, 2])
def test_cuda_is_asked_what_it_has_and_not_what_the_driver_shows(monkeypatch, has):
    monkeypatch.setattr(torch._C, "_cuda_getDeviceCount", lambda: has, raising=False)
    assert importing.look_at_devices()["cuda"] == has


@pytest.mark.usefixtures("driver_shows_two")
def test_a_torch_that_has_no_such_count_tells_its_own(monkeypatch):
    monkeypatch.delattr(torch._C, "_cuda_getDeviceCount", raising=False)
    assert importing.look_at_devices()["cuda"] == 2


def test_without_cuda_nothing_is_counted(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert importing.look_at_devices()["cuda"] == 0
