"""Which options make no sense together, or change nothing where they stand: a table."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

from devctl.errors import UsageError


class Clash(NamedTuple):
    """Options that are too much beside others, or without them.

    Attributes:
        because: why.
        unwanted: the options that are too much.
        beside: so they are where any of these is given; empty for always.
        without: and where none of these is given.
        hint: what to give instead, or empty.
    """

    because: str
    unwanted: tuple[str, ...]
    beside: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    hint: str = ""


_WAYS = ("strategy", "objective")
_SHOWN = ("to", "report", "explain", "svg", "html")
_GATES = ("no-offload", "no-disk", "max-context")
_WORKLOAD = ("context-length", "target-context")

_RUN = ("attn-implementation", "no-padding", "decode", "prefill-chunk-size", "images")
"""How transformers runs a workload."""

WHAT_WORKS = (
    "what works: --devices, --machine, --max-memory, --reserve, --context-length, --batch-size, --kv-dtype, "
    "--overhead, --max-context, --no-offload, --to llama.cpp"
)
"""Of a GGUF file."""

_ASKED = ("timeout", "remote-command")

LATENCY = "objective latency"
"""Stands for ``--objective`` with that value."""

OVER_HOSTS = "over several hosts"
"""Stands for several machines, however they are given."""

GGUF = "a GGUF file"
"""Stands for a MODEL that is one, or a folder of such."""

VLLM = "engine vllm"
"""Stands for ``--engine`` with that value."""

OF_PLAN = (
    Clash(
        "a GGUF file is planned for llama.cpp, as it is and in whole layers",
        (
            *_WAYS,
            "speed",
            "map",
            "tp",
            "ep",
            "compare",
            "what-if",
            "fits-on",
            "target-context",
            "explain",
            "no-disk",
            "dtype",
            "model-class",
            "trust-remote-code",
            "quantize",
            "no-cache",
            "new-tokens",
            "engine",
            VLLM,
            *_RUN,
        ),
        beside=(GGUF,),
        hint=WHAT_WORKS,
    ),
    Clash(
        "that is for vLLM",
        ("gpu-memory-utilization", "max-num-batched-tokens", "max-num-seqs"),
        without=(VLLM,),
        hint="or add --engine vllm",
    ),
    Clash(
        "vLLM places layers, reads prompts and attends in its own way",
        (
            *_WAYS,
            *(each for each in _SHOWN if each not in ("to", "report")),
            *_GATES,
            "map",
            "target-context",
            "what-if",
            "compare",
            "fits-on",
            "speed",
            "new-tokens",
            "overhead",
            *_RUN,
        ),
        beside=(VLLM,),
    ),
    Clash("the plan is for vLLM", ("to sglang", "to llama.cpp"), beside=(VLLM,), hint="or without --engine"),
    Clash(
        "vLLM quantises weights as it loads them only to fp8",
        ("quantize",),
        beside=(VLLM,),
        without=("quantize fp8",),
    ),
    Clash("--devices and --machine both say what to plan for", ("machine",), beside=("devices",)),
    Clash("--hosts says what to plan for", ("devices", "machine"), beside=("hosts",)),
    Clash("only --hosts asks hosts", _ASKED, without=("hosts",)),
    Clash(
        "over several hosts layers go in stages, with most room on the fullest and nothing off the accelerators",
        (*_WAYS, "map", "no-offload", "no-disk", "fits-on", "speed"),
        beside=(OVER_HOSTS,),
    ),
    Clash(
        "devices are numbered on each host anew",
        ("visible",),
        beside=(OVER_HOSTS,),
        hint="or say how many each host gives: like 'a:2xH100;b:4xH100', by slots of a hostfile, or by "
        "CUDA_VISIBLE_DEVICES where `devctl list --json` runs",
    ),
    Clash("over several hosts no batch is padded", ("no-padding",), beside=(OVER_HOSTS,)),
    Clash("--compare shows every strategy", (*_WAYS, *_SHOWN, *_GATES, "map", "target-context"), beside=("compare",)),
    Clash(
        "--what-if tries them all",
        (*_WAYS, *_SHOWN, *_GATES, "map", *_WORKLOAD, "compare", "batch-size"),
        beside=("what-if",),
    ),
    Clash(
        "--fits-on is about machines of each board",
        (
            "devices",
            "machine",
            "visible",
            "speed",
            "objective",
            *_SHOWN,
            *_GATES,
            "map",
            "target-context",
            "compare",
            "what-if",
        ),
        beside=("fits-on",),
    ),
    Clash(
        "ranks of --tp share every layer, with nothing offloaded",
        (
            *_WAYS,
            "speed",
            "explain",
            "svg",
            "html",
            "no-offload",
            "no-disk",
            "map",
            "target-context",
            "compare",
            "what-if",
            "fits-on",
        ),
        beside=("tp",),
        without=(OVER_HOSTS,),
    ),
    Clash("how quantised weights are cut for --tp is not known", ("quantize",), beside=("tp",), without=(VLLM,)),
    Clash("how adapters are cut for --tp is not known", ("adapter",), beside=("tp",)),
    Clash("what runs layers in stages over several hosts loads no adapter", ("adapter",), beside=(OVER_HOSTS,)),
    Clash("engines load adapters by rules of their own", ("adapter",), beside=("to",)),
    Clash("engines load adapters by rules of their own", ("adapter",), beside=(VLLM,)),
    Clash("--ep is for ranks of --tp", ("ep",), without=("tp",), hint="or give as many with --tp"),
    Clash("--max-context looks for it", _WORKLOAD, beside=("max-context",)),
    Clash(
        "--target-context looks for the batch or context",
        ("batch-size", "map", "context-length"),
        beside=("target-context",),
    ),
    Clash("--map says where everything goes", (*_WAYS, "explain"), beside=("map",)),
    Clash("--explain is of weights and their room", ("explain",), beside=(LATENCY, *_WORKLOAD)),
    Clash("one sequence is not padded", ("no-padding",), beside=("batch-size 1",)),
    Clash("--speed is for --objective latency", ("speed",), without=(LATENCY,)),
    Clash(
        "without a workload only weights are counted",
        (
            "batch-size",
            "new-tokens",
            "kv-dtype",
            "overhead",
            *_RUN,
        ),
        without=(*_WORKLOAD, "max-context", "what-if", VLLM),
        hint="or count a workload, with --context-length",
    ),
)
"""Those of ``devctl plan``."""

OF_LOAD = (
    Clash("--map says where everything goes", ("strategy", "max-memory"), beside=("map",)),
    Clash("one sequence is not padded", ("no-padding",), without=("batch-size",), hint="or give a --batch-size"),
    Clash("--image is the only one that is run", ("images",), beside=("image",)),
    Clash("--tolerance is for a --baseline", ("tolerance",), without=("baseline",), hint="or give one"),
)
"""Those of ``devctl load``."""

_OF_HOSTS = (
    "launch",
    "launcher",
    "distributed",
    "master-addr",
    "master-port",
    "join-timeout",
    "step-timeout",
    "verify-weights",
)

OF_ONE_HOST = (
    Clash(
        "without --map FILE, a plan over several hosts, all is loaded by this process",
        _OF_HOSTS,
        hint="`devctl plan MODEL --hosts …` writes one",
    ),
)
"""Those of ``devctl load`` on this machine alone."""

OF_STAGES = (
    Clash("--map says where everything goes", ("strategy", "max-memory"), beside=("map",)),
    Clash(
        "a plan over several hosts is loaded from its checkpoint, run once, and compared with one process",
        (
            "load-format",
            "allow-missing",
            "offload-folder",
            "image",
            "images",
            "audio",
            "prefill-chunk-size",
            "attn-implementation",
            "repeat",
            "warmup",
            "verify",
            "baseline",
            "tolerance",
        ),
    ),
    Clash("one sequence is not padded", ("no-padding",), without=("batch-size",), hint="or give a --batch-size"),
)
"""Those of ``devctl load`` with a plan over several hosts."""

OF_RANK = (
    Clash(
        "a rank is told by its launcher", ("launch", "launcher", "master-addr", "master-port"), beside=("distributed",)
    ),
)
"""Those of one rank."""

OF_LAUNCH = (
    Clash("--launcher is for --launch print", ("launcher",), without=("launch print",)),
    Clash("all ranks meet on this machine", ("master-addr",), beside=("launch local",)),
)
"""Those of whoever starts the ranks."""

OF_CHECK = (
    Clash("--format is how --select names GPUs", ("format",), without=("select",)),
    Clash("--json is a format of its own", ("format",), beside=("json",)),
)
"""Those of ``devctl check``."""

OF_LIST = (
    Clash("--hosts says which hosts", ("machine",), beside=("hosts",)),
    Clash("only --hosts asks hosts", (*_ASKED, "require-all"), without=("hosts",)),
    Clash(
        "of other hosts all is shown that they say",
        ("only gpu", "only cpu", "only disk", "watch", "benchmark", "offload-folder"),
        beside=("hosts", "machine"),
    ),
    Clash("--benchmark measures once", ("watch",), beside=("benchmark",)),
    Clash("--offload-folder is about a disk", ("offload-folder",), beside=("only gpu", "only cpu")),
    Clash("--benchmark measures disks and GPUs", ("benchmark",), beside=("only cpu",)),
)
"""Those of ``devctl list``."""


def refuse(table: Iterable[Clash], given: Collection[str]) -> None:
    """Refuse options of which ``given`` has too many, by ``table``.

    Args:
        given: names of the options that are given, without dashes.

    Raises:
        UsageError: naming those to leave out.
    """
    for clash in table:
        applies = (not clash.beside or any(name in given for name in clash.beside)) and not any(
            name in given for name in clash.without
        )
        if applies and (too_much := [f"--{name}" for name in clash.unwanted if name in given]):
            raise UsageError(f"{clash.because}: leave out {' and '.join(too_much)}", hint=clash.hint)
