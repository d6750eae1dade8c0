"""Plans as exporters see them, made by hand."""

from devctl.export.records import Exportable
from devctl.placement.parallel.records import Stage, Stages


def stages(*counts, hosts=(), devices=None, tp=1, states=None):
    """Stages of so many layers each; the host of each, or one for all."""
    found, end, there = [], 0, {}
    for number, count in enumerate(counts):
        host = hosts[number] if hosts else "here"
        first = there.get(host, 0)
        own = tuple(f"cuda:{first + at}" for at in range(tp)) if devices is None else devices[number]
        there[host] = first + tp
        state = (states or [count * 100 for count in counts])[number]
        found.append(
            Stage(
                stage=number,
                host=host,
                devices=own,
                layers=(end, end + count),
                used=1000,
                state=state,
                activations=10,
                overhead=1,
                budget=9000,
            )
        )
        end += count
    return Stages(container="model.layers", stages=tuple(found))


def plan(found, **changed):
    """An exportable plan of these stages."""
    given = {
        "model": "org/model",
        "revision": None,
        "dtype": "bfloat16",
        "quantisation": None,
        "layers": found.stages[-1].layers[1],
        "stages": found,
        "context_length": 4096,
        "batch_size": 2,
    }
    return Exportable(**given | changed)
