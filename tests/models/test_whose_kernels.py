"""Whose kernels run on which boards."""

import pytest

from devctl.models.footprint import Kernels
from devctl.models.whose_kernels import Build, kernels_on, parse_cudnn, parse_release, shuns_cudnn

NEW = Build(torch=(2, 11, 0), cudnn=(9, 15, 1, 9))


@pytest.mark.parametrize(
    ("capabilities", "build", "expected"),
    [
        ([], NEW, Kernels.CPU),
        (["9.0"], NEW, Kernels.ACCELERATOR_CUDNN),
        (["10.0", "10.3", "9.0"], NEW, Kernels.ACCELERATOR_CUDNN),
        (["9.0"], None, Kernels.ACCELERATOR),
        (["9.0"], Build(torch=(2, 10, 1), cudnn=(9, 15, 1)), Kernels.ACCELERATOR),
        (["9.0"], Build(torch=(2, 13), cudnn=(9, 10, 2, 21)), Kernels.ACCELERATOR),
        (["9.0"], Build(torch=(2, 13)), Kernels.ACCELERATOR),
        (["9.0"], Build(torch=(2, 13), cudnn=(9, 20), shuns_cudnn=True), Kernels.ACCELERATOR),
        (["9.0", "8.0"], NEW, Kernels.ACCELERATOR),
        (["9.0", None], NEW, Kernels.ACCELERATOR),
        (["12.0"], NEW, Kernels.ACCELERATOR),
        (["8.9"], NEW, Kernels.ACCELERATOR),
        (["7.5"], NEW, Kernels.ACCELERATOR_BEFORE_8),
        (["9.0", "7.0"], None, Kernels.ACCELERATOR_BEFORE_8),
        (["?"], NEW, Kernels.ACCELERATOR),
    ],
)
def test_they_follow_from_the_boards_and_the_build(capabilities, build, expected):
    assert kernels_on(capabilities, build) is expected


def test_versions_are_read_as_they_are_told():
    assert parse_release("2.11.0+cu130") == (2, 11, 0)
    assert parse_release("2.15.0.dev20261101") == (2, 15, 0)
    assert parse_release("9.15.1.9") == (9, 15, 1, 9)
    assert parse_release(None) is parse_release("none") is None
    assert parse_cudnn(91501) == (9, 15, 1)
    assert parse_cudnn(8907)[0] == 0  # of the old way to count: below all that matter
    assert parse_cudnn(None) is None


def test_torch_can_be_told_not_to_prefer_cudnn():
    assert shuns_cudnn({"TORCH_CUDNN_SDPA_DEPRIORITIZED": "1"})
    assert not shuns_cudnn({"TORCH_CUDNN_SDPA_DEPRIORITIZED": "0"})
    assert not shuns_cudnn({})
