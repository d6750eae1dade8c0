"""What ranks of transformers' pipeline parallelism really hold beside their weights, on the CPU: a process each.

    python -m tests.placement.parallel.on_ranks MODEL COUNTS TOKENS BATCH NEW

prints a line of JSON a rank: the most that torch's allocator gave out at once, and what was foretold.
"""

import json
import multiprocessing
import os
import socket
import sys
import tempfile
from dataclasses import replace

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

from devctl.models.files.resolve import resolve
from devctl.models.footprint import Kernels, Workload
from devctl.models.skeleton import read_skeleton
from devctl.models.tracing.trace import trace_footprint
from devctl.placement.parallel.costs import Costs, Handed
from devctl.placement.parallel.layers import layers_of
from tests.metered import peak_of, run
from tests.small_models import MEASURED


def foretold(name, counts, workload):
    """Bytes beside the weights of each stage."""
    model_class, config = MEASURED[name]()
    config.architectures, config.dtype = [model_class.__name__], "float32"
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        skeleton = read_skeleton(resolve(folder))
    footprint = trace_footprint(skeleton, replace(workload, kernels=Kernels.CPU))
    row = workload.batch_size * config.hidden_size * 4
    handed = Handed(prefill=row * (workload.context_length - workload.new_tokens), decode=row)
    costs = Costs(skeleton.tree, layers_of(skeleton.tree), footprint=footprint, handed=handed)
    ends = [sum(counts[: at + 1]) for at in range(len(counts))]
    loads = [costs.load(first, end) for first, end in zip([0, *ends[:-1]], ends, strict=True)]
    return [load.state + load.activations for load in loads]


def of_rank(rank, name, counts, workload, port, out):
    """Run one rank; what it held goes to ``out``."""
    from torch.distributed.device_mesh import init_device_mesh
    from transformers.distributed import pipeline_parallel

    class Planned(pipeline_parallel.PipelineStage):
        def layer_range_for_rank(self, at, layers):
            return sum(counts[:at]), sum(counts[: at + 1])

    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    pipeline_parallel.PipelineStage = Planned
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=len(counts))
    model_class, config = MEASURED[name]()
    torch.manual_seed(0)
    model = model_class._from_config(config, dtype=torch.float32).eval()
    mesh = init_device_mesh("cpu", (len(counts),), mesh_dim_names=("pp",))
    model = pipeline_parallel.apply_pipeline_parallelism(model, mesh)

    def seeded():
        torch.manual_seed(1)  # every rank is given the same ids
        run(model, workload)

    out.put((rank, peak_of(seeded)))
    dist.barrier()
    dist.destroy_process_group()


def measured(name, counts, workload):
    """Bytes that each rank held beside its weights."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # each rank starts with the imports done
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.sharded_run"])
    out = context.SimpleQueue()
    arguments = (name, counts, workload, port, out)
    start_processes(of_rank, args=arguments, nprocs=len(counts), join=True, start_method="forkserver")
    return [peak for _, peak in sorted(out.get() for _ in counts)]


def ranks(name, counts, tokens, batch, new):
    """What each rank held and what was foretold; the arguments are those of the command line."""
    cut = tuple(map(int, counts.split(",")))
    workload = Workload(context_length=int(tokens), batch_size=int(batch), new_tokens=int(new))
    said = foretold(name, cut, workload)
    return [
        {"rank": rank, "measured": really, "predicted": predicted}
        for rank, (really, predicted) in enumerate(zip(measured(name, cut, workload), said, strict=True))
    ]


if __name__ == "__main__":
    for each in ranks(*sys.argv[1:]):
        print(json.dumps(each), flush=True)
