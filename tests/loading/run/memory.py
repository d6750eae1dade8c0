"""Loads a model that is mostly on disk, in a process of its own, and tells what it held; see ``test_offload.py``."""

import json
import sys
import threading
from pathlib import Path

from devctl.devices import Device
from devctl.loading.run import smoke
from devctl.loading.run.inputs import prepare
from devctl.loading.weights import loader, offload
from devctl.loading.weights.loader import LoadFormat
from devctl.models.files.resolve import resolve
from devctl.models.skeleton import read_skeleton
from devctl.models.tree import sizes


def held():
    """Bytes of this process's own memory, and those with its mapped files, now, as Linux counts them."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return tuple(int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "VmRSS"))


class Sampler(threading.Thread):
    """Looks every millisecond at what is held; ``own`` and ``mapped`` are the most that it saw."""

    def __init__(self):
        super().__init__(daemon=True)
        self.own = self.mapped = 0
        self.done = threading.Event()

    def run(self):
        while not self.done.wait(0.001):
            own, mapped = held()
            self.own, self.mapped = max(self.own, own), max(self.mapped, mapped)


def main(folder, parent):
    """Print the bytes on disk, those on the CPU, and the most that the process held beyond what it began with."""
    import torch

    torch.set_num_threads(1)
    source = resolve(folder)
    skeleton = read_skeleton(source)
    inputs = prepare(source, skeleton, prompt=None, new_tokens=1, trust_remote_code=False)
    device_map = {"": Device.cpu(), "model.layers": Device.disk()}
    needed = offload.bytes_to_write(source, skeleton, device_map, random_weights=False)
    own, mapped = held()
    sampler = Sampler()
    sampler.start()
    with offload.offload_folder(needed, Path(parent)) as chosen:
        model, _ = loader.load(
            source, skeleton, device_map, load_format=LoadFormat.AUTO, folder=chosen, on_progress=lambda _: None
        )
        smoke.run(model, inputs, device=Device.cpu(), new_tokens=1)
        written = sum(path.stat().st_size for path in chosen.iterdir())
    sampler.done.set()
    size = sizes(skeleton.tree)
    json.dump(
        {
            "on disk": size["model.layers"],
            "largest layer": size["model.layers.0"],
            "on the CPU": size[""] - size["model.layers"],
            "written": written,
            "most of its own": sampler.own - own,
            "most with mapped files": sampler.mapped - mapped,
        },
        sys.stdout,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
