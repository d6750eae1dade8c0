"""A model that ranks really share: processes that this one starts, with gloo between them, on this machine alone."""

import multiprocessing
import os
import tempfile
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import transformers
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_leaves
from transformers.models.llama import modeling_llama  # noqa: F401 - what any model imports, once for all ranks

from tests.metered import peak_of, run

_SECONDS = 240
"""How long a rank may take, beyond which it is ended."""


def ids_of(tokens, batch=2):
    """The text that is run: the same in every process."""
    return torch.arange(batch * tokens).reshape(batch, tokens) % 127 + 1


def kept_bytes(cache):
    """Bytes of what the layers of a cache keep: keys and values, or states."""
    held = [leaf for layer in cache.layers for leaf in tree_leaves(vars(layer)) if isinstance(leaf, torch.Tensor)]
    return sum(tensor.untyped_storage().nbytes() for tensor in held if tensor.is_floating_point())


def alone(folder, tokens):
    """Logits of the last token, tokens that follow it, and bytes of the cache, without sharing."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return _answer(model, tokens)


def shared(folder, tokens, *, ranks=2, experts=False, workload=None):
    """The same on every rank, with the bytes of its tensors, by name, and its peak.

    Args:
        workload: what generate does whose peak is measured; None for no such run.
    """
    # each rank starts with the imports done
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.sharded_run"])
    with tempfile.TemporaryDirectory() as meeting:
        ends = [context.Pipe(duplex=False) for _ in range(ranks)]
        processes = [
            context.Process(
                target=_rank,
                args=(end[1], rank, ranks, str(folder), tokens, experts, workload, f"{meeting}/store"),
                daemon=True,
            )
            for rank, end in enumerate(ends)
        ]
        for process in processes:
            process.start()
        for _, theirs in ends:
            theirs.close()
        try:
            found = [_received(ours) for ours, _ in ends]
        finally:
            for process in processes:
                process.join(10)
                if process.is_alive():
                    process.kill()
        return found


def _received(connection):
    assert connection.poll(_SECONDS), "a rank does not answer"
    try:
        answer = connection.recv()
    except EOFError:
        raise AssertionError("a rank ended without an answer") from None
    if isinstance(answer, str):
        raise AssertionError(answer)
    return answer


def _rank(connection, rank, ranks, folder, tokens, experts, workload, store):
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks), GLOO_SOCKET_IFNAME="lo", HF_HUB_OFFLINE="1"
    )
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    try:
        dist.init_process_group(
            "gloo", init_method=Path(store).as_uri(), rank=rank, world_size=ranks, timeout=timedelta(seconds=60)
        )
        connection.send(_of_rank(folder, tokens, ranks, experts, workload))
        dist.barrier()
        dist.destroy_process_group()
    except Exception as error:  # noqa: BLE001 - told where the test is
        connection.send(f"rank {rank}: {type(error).__name__}: {error}")
        os._exit(1)  # the others wait in a collective


def _of_rank(folder, tokens, ranks, experts, workload):
    from transformers.distributed import DistributedConfig

    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        distributed_config=DistributedConfig(tp_size=ranks, ep_size=ranks if experts else 1),
    ).eval()
    found = _answer(model, tokens)
    held = {}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        held[name] = local.nbytes
    found["bytes"] = held
    # what gloo's threads let go of late comes and goes; the least is what the run itself takes
    found["peak"] = None if workload is None else min(peak_of(lambda: run(model, workload)) for _ in range(3))
    return found


def _answer(model, tokens):
    ids = ids_of(tokens)
    settings = model.generation_config
    settings.eos_token_id, settings.pad_token_id = None, 0
    with torch.no_grad():
        output = model(input_ids=ids, use_cache=True)
        more = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=6)
    return {
        "logits": output.logits[:, -1].float().tolist(),
        "ids": more[:, tokens:].tolist(),
        "cache": kept_bytes(output.past_key_values),
    }
