"""What is answered without torch's fake mode is what the fake mode answers."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from devctl.models.footprint import Kernels, Workload
from devctl.models.tracing import fake_run
from devctl.models.tracing.recorder import Recorder
from devctl.models.tracing.shortcut import MAKERS, RESHAPES, VIEWS, Shortcut
from devctl.models.tracing.trace import trace_footprint
from tests.marks import slow
from tests.models.tracing.test_footprint import skeleton

aten = torch.ops.aten


def layouts(make):
    """A tensor as it comes, turned round, in part, spread out, with room between rows, and with channels last."""
    return [
        make(2, 3, 4, 8),
        make(4, 3, 2, 8).transpose(0, 2),
        make(2, 3, 8, 4).transpose(2, 3),
        make(2, 3, 9, 8)[:, :, 1:5],
        make(2, 1, 4, 8).expand(2, 3, 4, 8),
        make(2, 3, 4, 16)[..., :8],
        make(2, 3, 4, 8).to(memory_format=torch.channels_last),
    ]


def matrices(make):
    """The same of matrices, of which two can be multiplied."""
    return [make(8, 8), make(8, 8).t(), make(8, 16)[:, 4:12], make(1, 8).expand(8, 8)]


def of_one(func, *more, **named):
    return lambda make: [(func, (each, *more), named) for each in layouts(make)]


def of_singles(func, *more):
    """The same of tensors with sizes of 1, whose strides nothing depends on."""
    return lambda make: [
        (func, (each, *more), {})
        for each in (
            make(1, 1, 8, 4),
            make(1, 8, 1, 5)[..., :4],
            make(1, 8, 9, 4)[:, :, :1],
            make(8, 1, 4).transpose(0, 1),
            make(1, 1, 4).expand(8, 1, 4),
            make(3, 8, 4)[1:2],
        )
    ]


def of_two(func):
    def calls(make):
        each = layouts(make)
        pairs = [(a, b) for a in each for b in each]
        pairs += [(a, b) for a in each for b in (make(), make(8), make(4, 1), make(3, 4, 8, dtype=torch.float32))]
        return [(func, pair, {}) for pair in pairs] + [(func, (each[1], number), {}) for number in (2, 2.0, True)]

    return calls


CALLS = {
    aten._to_copy.default: [
        of_one(aten._to_copy.default, dtype=torch.float32),
        of_one(aten._to_copy.default, dtype=torch.bfloat16, memory_format=torch.contiguous_format),
    ],
    aten._unsafe_view.default: [
        of_one(aten._unsafe_view.default, [6, 4, -1]),
        of_singles(aten._unsafe_view.default, [1, 8, 4]),
    ],
    aten.add.Tensor: [of_two(aten.add.Tensor), of_one(aten.add.Tensor, 1.0, alpha=2)],
    aten.addmm.default: [
        lambda make: [(aten.addmm.default, (make(8), a, b), {}) for a in matrices(make) for b in matrices(make)]
    ],
    aten.bmm.default: [
        lambda make: [
            (aten.bmm.default, (a, b), {})
            for a in (make(3, 4, 8), make(4, 3, 8).transpose(0, 1))
            for b in (make(3, 8, 5), make(3, 5, 8).transpose(1, 2))
        ]
    ],
    aten.cat.default: [
        lambda make: [
            (aten.cat.default, ([a, b], dim), {}) for a in layouts(make) for b in layouts(make) for dim in (0, -1)
        ]
    ],
    aten.clone.default: [
        of_one(aten.clone.default),
        of_one(aten.clone.default, memory_format=torch.contiguous_format),
    ],
    aten.div.Tensor: [of_two(aten.div.Tensor)],
    aten.exp.default: [of_one(aten.exp.default)],
    aten.expand.default: [lambda make: [(aten.expand.default, (make(2, 1, 4)[:, :, 1:], [5, 2, 3, -1]), {})]],
    aten.gelu.default: [of_one(aten.gelu.default), of_one(aten.gelu.default, approximate="tanh")],
    aten.mean.dim: [
        of_one(aten.mean.dim, [-1], True),
        of_one(aten.mean.dim, [1], dtype=None),
        of_one(aten.mean.dim, [0, 2], dtype=torch.float32),
    ],
    aten.mm.default: [lambda make: [(aten.mm.default, (a, b), {}) for a in matrices(make) for b in matrices(make)]],
    aten.mul.Tensor: [of_two(aten.mul.Tensor)],
    aten.neg.default: [of_one(aten.neg.default)],
    aten.permute.default: [of_one(aten.permute.default, [2, 0, -1, 1])],
    aten.pow.Tensor_Scalar: [of_one(aten.pow.Tensor_Scalar, 2), of_one(aten.pow.Tensor_Scalar, 0.5)],
    aten.rsqrt.default: [of_one(aten.rsqrt.default)],
    aten.select.int: [
        of_singles(aten.select.int, 0, 0),
        of_one(aten.select.int, 1, 2),
        of_one(aten.select.int, -1, -3),
    ],
    aten.sigmoid.default: [of_one(aten.sigmoid.default)],
    aten.silu.default: [of_one(aten.silu.default)],
    aten.slice.Tensor: [
        of_singles(aten.slice.Tensor, -2, 0, 1),
        of_one(aten.slice.Tensor, 2, 1, 9223372036854775807),
        of_one(aten.slice.Tensor, -1, -5, -1, 2),
        of_one(aten.slice.Tensor, 0, 5, 9),
        of_one(aten.slice.Tensor),
    ],
    aten.softplus.default: [of_one(aten.softplus.default)],
    aten.squeeze.dim: [
        of_singles(aten.squeeze.dim, 0),
        of_one(aten.squeeze.dim, 1),
        lambda make: [(aten.squeeze.dim, (make(2, 1, 3), 1), {})],
    ],
    aten.sub.Tensor: [of_two(aten.sub.Tensor)],
    aten.sum.dim_IntList: [of_one(aten.sum.dim_IntList, [1]), of_one(aten.sum.dim_IntList, [-1, 0], True)],
    aten.t.default: [lambda make: [(aten.t.default, (each,), {}) for each in matrices(make)]],
    aten.tanh.default: [of_one(aten.tanh.default)],
    aten.transpose.int: [of_singles(aten.transpose.int, 0, 2), of_one(aten.transpose.int, 1, -1)],
    aten.unsqueeze.default: [
        of_singles(aten.unsqueeze.default, 1),
        of_one(aten.unsqueeze.default, 0),
        of_one(aten.unsqueeze.default, -1),
    ],
    aten.view.default: [
        of_one(aten.view.default, [6, 4, -1]),
        of_one(aten.view.default, [2, 3, 4, 2, 4]),
        of_one(aten.view.default, [2, 1, 3, 4, -1, 1]),
        of_singles(aten.view.default, [1, 1, -1]),
        of_singles(aten.view.default, [8, 1, 4]),
        of_singles(aten.view.default, [1, 8, 2, 2, 1]),
    ],
}


class Told(Recorder):
    """Counts the operations that it is told of; to be asked for a device is none."""

    def __init__(self):
        super().__init__([], length=1000, most=100_000)
        self.answered = 0

    def end(self, func, args, out):
        super().end(func, args, out)
        self.answered += 1


def makes(dtype):
    return lambda *shape, dtype=dtype: torch.empty(shape, dtype=dtype)


def described(func, args, kwargs):
    """The answer as all that can be told of it, and the storages among the operands that it shares; or the failure."""
    try:
        out = func(*args, **kwargs)
    except Exception as error:  # noqa: BLE001 - whatever it is, it has to be the same
        return type(error), str(error)
    operands = args[0] if isinstance(args[0], list) else [a for a in args if isinstance(a, torch.Tensor)]
    storage = out.untyped_storage()
    shared = [place for place, one in enumerate(operands) if one.untyped_storage()._cdata == storage._cdata]
    told = (out.shape, out.stride(), out.storage_offset(), out.dtype, out.device, storage.nbytes(), out.requires_grad)
    return type(out).__name__, *told, shared


def test_every_operation_that_is_answered_is_compared():
    assert CALLS.keys() == RESHAPES | VIEWS | MAKERS


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("func", CALLS, ids=str)
def test_an_answer_is_that_of_the_fake_mode(func, dtype):
    recorder = Told()
    known = {}
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
        calls = [call for of_kind in CALLS[func] for call in of_kind(makes(dtype))]
        expected = [described(*call) for call in calls]
        for _ in range(2):  # the second time by what is remembered
            recorder.answered = 0
            with Shortcut(recorder, known):
                assert [described(*call) for call in calls] == expected
    failed = sum(isinstance(answer[0], type) for answer in expected)
    assert recorder.answered == len(calls) - failed  # and none was left to the fake mode


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: torch.ones(3, dtype=torch.int64), id="integers"),
        pytest.param(lambda: torch.ones(3, dtype=torch.bool), id="a mask"),
        pytest.param(lambda: torch.tensor([2.0]), id="a known value"),
    ],
)
def test_other_operands_are_left_to_the_modes_below(make):
    recorder = Told()
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True), Shortcut(recorder, {}):
        other = make()
        assert (torch.empty(3) * other).shape == (3,)
        assert other[:1].shape == (1,)
    assert recorder.answered == 0


def test_a_conversion_to_integers_is_left_to_the_modes_below():
    recorder = Told()
    with torch.no_grad(), FakeTensorMode(), Shortcut(recorder, {}):
        assert torch.empty(3).to(torch.int64).dtype == torch.int64
    assert recorder.answered == 0


class NoShortcut(torch.utils._python_dispatch.TorchDispatchMode):
    def __init__(self, *_):
        super().__init__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kernels", [Kernels.ACCELERATOR, Kernels.CPU], ids=str)
@pytest.mark.parametrize(
    "name", ["small llama", *slow("small gemma2", "small deepseek-v3", "small t5", "small qwen3-next")]
)
def test_a_footprint_is_the_same_without_it(name, kernels, monkeypatch):
    workload = Workload(context_length=300, batch_size=2, new_tokens=3, kernels=kernels)
    quick = trace_footprint(skeleton(name), workload)
    monkeypatch.setattr(fake_run, "Shortcut", NoShortcut)
    assert trace_footprint(skeleton(name), workload) == quick
