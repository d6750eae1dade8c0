"""llama.cpp's words for a plan. Rules as read in the source of the release below.

It counts the output as one more layer behind the others. With ``-ngl N`` the last N of layers and output are on
devices, and which of them is on which follows from ``--tensor-split``: a device has the part of them that its number is
of the sum. The token embedding is always on the CPU.
"""

from __future__ import annotations

import shlex
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate

from devctl.export.records import Command, Export, Exportable, Unsayable, are_first, visible_devices

RELEASE = "b11434"
PORT = 50052
MOST_DEVICES = 15
"""Numbers of ``--tensor-split``: it takes fewer than ``llama_max_devices()``, which is 16."""
GGUF = "gguf"
"""What a plan of a GGUF file has for the model's dtype: its sizes are the file's own."""
_KV_DTYPES = {None: None, "float16": "f16", "bfloat16": "bf16", "float32": "f32", "int8": "q8_0"}


def export(plan: Exportable) -> Export | Unsayable:
    """``llama-server`` with the layers of ``plan`` on its devices, and an ``rpc-server`` on every other host."""
    if reasons := _reasons(plan):
        return Unsayable(reasons)
    hosts = plan.stages.hosts
    split = tensor_split(plan.counts)
    on_hub = plan.dtype == GGUF and plan.revision is not None
    words = ["llama-server", *_file_of(_file(plan), on_hub=on_hub)]
    if plan.on_cpu is not None and plan.on_cpu == (0, plan.layers):
        words += ["--gpu-layers", "0"]  # the output is there, too
    elif plan.layers is not None:
        # the output is one more, and what is on the CPU is the first of them
        words += ["--gpu-layers", str(plan.layers + 1 - (plan.on_cpu[1] if plan.on_cpu else 0))]
    else:
        words += ["--gpu-layers", "all"]
    if len(split) > 1:
        words += ["--split-mode", "layer", "--tensor-split", ",".join(map(str, split))]
    elif plan.on_cpu != (0, plan.layers):
        words += ["--split-mode", "none", *_main_gpu(plan)]  # else it would take every GPU that it sees
    if plan.context_length is not None:
        # the cache is shared out to the sequences
        words += ["--ctx-size", str(plan.context_length * plan.batch_size), "--parallel", str(plan.batch_size)]
    if (kept_in := _KV_DTYPES[plan.kv_dtype]) is not None:
        words += ["--cache-type-k", kept_in, "--cache-type-v", kept_in]
    words += ["--fit", "off"]
    # devices of other hosts come before one's own, so that the server runs on the last host
    *workers, head = hosts
    serve = ("rpc-server", "--host", "0.0.0.0", "--port", str(PORT))  # noqa: S104 - for the user's own network
    # which offers every accelerator that it sees, each of which would have a number of the split
    commands = [
        Command(host=host, environment=visible_devices(plan.stages.devices_on(host), alone=True), words=serve)
        for host in workers
    ]
    if workers:
        words += ["--rpc", ",".join(f"{host}:{PORT}" for host in workers)]
    commands.append(
        Command(
            host=head if workers else "", environment=visible_devices(plan.stages.devices_on(head)), words=tuple(words)
        )
    )
    return Export(engine="llama.cpp", release=RELEASE, commands=tuple(commands), notes=_notes(plan))


def fitting(file: str, tokens: int | None = None, kv_dtype: str | None = None, *, on_hub: bool = False) -> str:
    """The line that lets llama.cpp fit a file by itself: it builds the graphs, and so knows its buffers.

    Args:
        tokens: of all sequences together; None for what llama.cpp finds room for.
        kv_dtype: torch's name of what keys and values are kept in, where llama.cpp has it.
        on_hub: whether ``file`` is one on a hub, org/name/file.
    """
    words = ["llama-fit-params", *_file_of(file, on_hub=on_hub)]
    if tokens is not None:
        words += ["--ctx-size", str(tokens)]
    if (kept_in := _KV_DTYPES.get(kv_dtype)) is not None:
        words += ["--cache-type-k", kept_in, "--cache-type-v", kept_in]
    return shlex.join(words)


def _file_of(file: str, *, on_hub: bool) -> list[str]:
    """Options that say which file is run."""
    organisation, _, rest = file.partition("/")
    name, _, inner = rest.partition("/")
    return ["--hf-repo", f"{organisation}/{name}", "--hf-file", inner] if on_hub and inner else ["--model", file]


def _main_gpu(plan: Exportable) -> list[str]:
    """The option for the only device, where it is not the first that there is and no variable makes it so."""
    (device,) = plan.stages.stages[0].devices
    if device.startswith("cuda:") or are_first((device,)):
        return []
    return ["--main-gpu", device.partition(":")[2]]


def tensor_split(counts: tuple[int, ...]) -> tuple[int, ...]:
    """Numbers of ``--tensor-split`` for so many layers on each device: the last one has the output too."""
    return (*counts[:-1], counts[-1] + 1)


def device_of(layer: int, layers: int, gpu_layers: int, split: tuple[int, ...]) -> int | None:
    """Where llama.cpp puts a layer, as its ``load_tensors`` does; None for the CPU. The output is layer ``layers``."""
    start = max(layers + 1 - gpu_layers, 0)
    if layer < start:
        return None
    on_devices = min(gpu_layers, layers + 1)
    total = sum(split)
    ends = [number / total for number in accumulate(split)]
    return bisect_right(ends, (layer - start) / on_devices)


def _file(plan: Exportable) -> str:
    return plan.model if plan.model.endswith(".gguf") else f"{plan.model.rstrip('/').rpartition('/')[2]}.gguf"


def _reasons(plan: Exportable) -> tuple[str, ...]:
    found = []
    if plan.stages.tensor_parallel > 1:
        found.append(
            "llama.cpp splits by layers here; its tensor split within layers (--split-mode row) is another plan"
        )
    if len(plan.counts) > MOST_DEVICES:
        found.append(f"llama.cpp takes {MOST_DEVICES} devices at most, and the plan has {len(plan.counts)}")
    if plan.on_cpu is not None and plan.on_cpu[0] != 0:
        found.append(
            f"llama.cpp leaves the first layers on the CPU (--gpu-layers), and the plan layers {plan.on_cpu[0]} to "
            f"{plan.on_cpu[1] - 1}"
        )
    if len(plan.counts) > 1:
        found += _out_of_order(plan)
    if plan.kv_dtype not in _KV_DTYPES:
        found.append(f"llama.cpp has no cache type for {plan.kv_dtype}")
    return tuple(found)


def _out_of_order(plan: Exportable) -> Iterator[str]:
    """Devices that a split's numbers would not be for, and that no variable puts in their order."""
    for host in plan.stages.hosts:
        devices = plan.stages.devices_on(host)
        if not all(device.startswith("cuda:") for device in devices) and not are_first(devices):
            on = f" on {host}" if len(plan.stages.hosts) > 1 else ""
            yield f"llama.cpp splits over the first devices in their order, and the plan has {', '.join(devices)}{on}"


def _notes(plan: Exportable) -> tuple[str, ...]:
    if plan.dtype == GGUF:
        notes = [
            "llama.cpp's compute buffers are not known, and the prompts that llama-server keeps in RAM (--cache-ram) "
            "are not counted"
        ]
        if plan.revision is not None:
            notes.append(f"llama.cpp downloads the newest file of that name; planned was {plan.revision}")
    else:
        notes = ["a GGUF file's sizes are not those of the checkpoint that was planned; the split is by layers"]
    if not plan.model.endswith(".gguf"):
        notes.append(f"{_file(plan)} stands for the model's GGUF file")
    if len(plan.stages.hosts) > 1:
        notes.append("rpc-server listens to everybody who can reach it: on a network of your own only")
    if plan.context_length is None:
        notes.append("the plan counts no workload: llama.cpp takes the context that the file names")
    return tuple(notes)
