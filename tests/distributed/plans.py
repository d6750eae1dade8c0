"""Plan documents with stages, written by hand from a model's tree."""

import json
import shutil

import torch

from devctl.models.files.resolve import resolve
from devctl.models.skeleton import read_skeleton
from devctl.models.tree import sizes
from devctl.placement.parallel.records import Stage, Stages
from tests import small_models

BASE = "model"


def save(folder, class_name="LlamaForCausalLM", shards="60kB", seed=0, **own):
    """A small model with random weights, in several files."""
    model_class, config = small_models.of_class(class_name, **own)
    torch.manual_seed(seed)
    model_class(config).eval().save_pretrained(folder, max_shard_size=shards)
    return folder


def stages(tree, cuts, hosts, device="cuda:{}"):
    """Stages of so many layers each, on these hosts."""
    size = sizes(tree)
    everywhere = sum(size[name] for name in size if name == f"{BASE}.rotary_emb")
    tied = size[f"{BASE}.embed_tokens"] if tree.ties else 0
    found, end, on_host = [], 0, {}
    for number, (count, host) in enumerate(zip(cuts, hosts, strict=True)):
        used = everywhere + sum(size[f"{BASE}.layers.{layer}"] for layer in range(end, end + count))
        if number == 0:
            used += size[f"{BASE}.embed_tokens"]
        if number == len(cuts) - 1:
            used += size[f"{BASE}.norm"] + size["lm_head"] + tied
        local = on_host.get(host, 0)
        on_host[host] = local + 1
        found.append(
            Stage(
                stage=number,
                host=host,
                devices=(device.format(local),),
                layers=(end, end + count),
                used=used,
                state=0,
                activations=0,
                overhead=0,
                budget=2**40,
            )
        )
        end += count
    return Stages(container=f"{BASE}.layers", stages=tuple(found))


def document(folder, cuts, hosts, **ways):
    """The plan document of the model in ``folder``."""
    tree = read_skeleton(resolve(str(folder))).tree
    return {
        "schema": 1,
        "kind": "devctl.plan",
        "model": {"name": str(folder), "class": tree.class_name, "dtype": tree.dtype},
        "device_map": {"": "a/cuda:0"},
        **stages(tree, cuts, hosts, **ways).to_document(),
    }


def shared(folder, ranks, host="a", device="cuda:{}"):
    """The plan document of a model whose layers are shared by so many ranks; of sizes that divide evenly."""
    tree = read_skeleton(resolve(str(folder))).tree
    size = sizes(tree)
    whole = [t.name for t in tree.index.tensors if "norm" in t.name or "rotary" in t.name]
    kept = sum(size[name] for name in whole)
    used = kept + (size[""] - kept) // ranks
    layers = len(tree.index.modules[f"{BASE}.layers"].children)
    stage = Stage(
        stage=0,
        host=host,
        devices=tuple(device.format(rank) for rank in range(ranks)),
        layers=(0, layers),
        used=used,
        state=0,
        activations=0,
        overhead=0,
        budget=2**40,
    )
    return {
        "schema": 1,
        "kind": "devctl.plan",
        "model": {"name": str(folder), "class": tree.class_name, "dtype": tree.dtype},
        "device_map": {"": "a/cuda:0"},
        **Stages(container=f"{BASE}.layers", stages=(stage,)).to_document(),
        "tensor_parallel": {"size": ranks, "expert_parallel": 1, "bytes_per_rank": [used] * ranks},
    }


def write(path, plan):
    """The file of a plan document."""
    path.write_text(json.dumps(plan))
    return path


def copy(folder, other):
    """The checkpoint once more, as another host has it."""
    shutil.copytree(folder, other)
    return other
