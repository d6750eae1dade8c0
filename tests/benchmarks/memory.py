"""What small models really hold beside their weights, beside what is predicted: ``python -m tests.benchmarks.memory``.

The models are random and run on the CPU. The truth is what torch's allocator reports to torch's profiler, which shares
nothing with the tracer.
"""

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from devctl.errors import UntracedError
from devctl.models.files.resolve import resolve
from devctl.models.footprint import Kernels, Workload, peak_bytes, state_bytes
from devctl.models.skeleton import read_skeleton
from devctl.models.tracing.trace import trace_footprint
from tests.small_models import MEASURED

WORKLOADS = {
    "a long prompt": Workload(context_length=1536, new_tokens=1, kernels=Kernels.CPU),
    "a batch": Workload(context_length=384, new_tokens=4, batch_size=6, kernels=Kernels.CPU),
    "a long answer": Workload(context_length=640, new_tokens=40, batch_size=4, kernels=Kernels.CPU),
}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Bytes of weights, state and peak (without weights) as predicted and as measured."""

    name: str
    workload: str
    dtype: str
    weights: int
    state: tuple[int, int]
    peak: tuple[int, int]

    @property
    def error(self) -> float:
        """By how much the predicted peak is above the measured one; below it where negative."""
        return self.peak[0] / self.peak[1] - 1


def compare(name, workload, dtype="float32"):
    """Predict and measure."""
    model_class, config = MEASURED[name]()
    config.architectures, config.dtype = [model_class.__name__], dtype
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        skeleton = read_skeleton(resolve(str(Path(folder))))
    asked = WORKLOADS[workload]
    footprint = trace_footprint(skeleton, asked)
    torch.manual_seed(0)
    model = model_class._from_config(skeleton.config, dtype=getattr(torch, dtype)).eval()
    state, peak = measure(model, asked)
    return Comparison(
        name=name,
        workload=workload,
        dtype=dtype,
        weights=sum({p.untyped_storage().data_ptr(): p.nbytes for p in model.parameters()}.values()),
        state=(state_bytes(footprint), state),
        peak=(peak_bytes(footprint), peak),
    )


def measure(model, workload):
    """Bytes that the cache holds at the end, and the most that the allocator gave out while the model did its work."""
    caches = []

    def keep(_module, _args, kwargs, _output):
        names = ("past_key_values", "cache_params", "state")
        caches.extend(kwargs[name] for name in names if kwargs.get(name) is not None)

    handle = model.register_forward_hook(keep, with_kwargs=True)
    _run(model, workload)  # once before: threads, packed weights
    caches.clear()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        _run(model, workload)
    handle.remove()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    alive = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return sum(_storages(caches[-1:]).values()), peak


def _run(model, workload):
    with torch.no_grad():
        if not model.can_generate():
            ids = torch.randint(1, 1000, (workload.batch_size, workload.context_length))
            model(input_ids=ids, attention_mask=torch.ones_like(ids))
            return
        ids = torch.randint(1, 1000, (workload.batch_size, workload.context_length - workload.new_tokens))
        settings = model.generation_config
        settings.eos_token_id, settings.pad_token_id = None, 0
        # a step more than tokens: generate does not run the model on its last one
        new = workload.new_tokens + 1
        model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new)


def _storages(value, seen=None):
    """Bytes of the storages that are reachable from an object, by address."""
    found, seen = {}, set() if seen is None else seen
    if id(value) in seen:
        return found
    seen.add(id(value))
    if isinstance(value, torch.Tensor):
        storage = value.untyped_storage()
        return {storage.data_ptr(): storage.nbytes()} if value.is_floating_point() else {}
    if isinstance(value, dict):
        children = value.values()
    elif isinstance(value, list | tuple):
        children = value
    else:
        children = vars(value).values() if hasattr(value, "__dict__") else ()
    for child in children:
        found |= _storages(child, seen)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(MEASURED))
    parser.add_argument("--dtype", default="float32")
    arguments = parser.parse_args()
    mib = 2**20
    print("| model | workload | weights MiB | state MiB | measured | peak MiB | measured | error |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    for name in arguments.names:
        for workload in WORKLOADS:
            try:
                found = compare(name, workload, arguments.dtype)
            except UntracedError as error:
                print(f"| {name} | {workload} | {error.message} |")
                continue
            numbers = (found.weights, *found.state, *found.peak)
            cells = " | ".join(f"{number / mib:.2f}" for number in numbers)
            print(f"| {name} | {workload} | {cells} | {found.error:+.1%} |")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
