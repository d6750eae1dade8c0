"""The four strategies beside transformers' own answers."""

import functools
import os
import random
import tempfile
from collections import Counter
from pathlib import Path
from unittest import mock

import pytest
import transformers

from devctl.devices import Device
from devctl.inventory.records import HOST_POOL, Accelerator, Host, Inventory
from devctl.models.files.resolve import resolve
from devctl.models.skeleton import read_skeleton
from devctl.models.tree import sizes, tensors
from devctl.placement import Strategy, place
from devctl.placement.budget import from_inventory
from devctl.placement.placement import to_hf
from devctl.placement.strategy import OF_TRANSFORMERS, device_of
from tests import small_models
from tests.marks import one_in, slow
from tests.upstream import UpstreamError, ask, assert_parity, ours

GIB = 2**30
CONFIGS = Path(__file__).parents[2] / "configs"
MODELS = sorted(path.name for path in CONFIGS.iterdir())
QUICK = ("bert-large", "gpt-oss-120b", "llama-3.1-8b", "tiny-llama")
"""Models of few modules, which are built and planned in no time."""

# shares of the model's bytes, so that each set is tight for every model
MACHINES = {
    "two equal, tight": {0: 0.6, 1: 0.6, "cpu": 1.5},
    "eight equal": dict.fromkeys(range(8), 0.2) | {"cpu": 1.0},
    "unequal": {0: 1.1, 1: 0.2, "cpu": 0.5},
    "offloads to disk": {0: 0.2, 1: 0.3, "cpu": 0.1},
    "one": {0: 0.7, "cpu": 1.0},
    "host only": {"cpu": 0.8},
    "first is full": {0: 0.0, 1: 0.9, 2: 0.5, "cpu": 0.2},
    "no cpu, disk given": {0: 0.4, 1: 0.4, "disk": 0.1},
    "gaps in the ids": {0: 0.5, 2: 0.4, 3: 0.4, "cpu": 1.0},
    "no zero": {1: 0.6, 2: 0.7, "cpu": 1.0},
    "mps": {"mps": 0.7, "cpu": 1.0},
}


# each model on each machine, and over these each strategy with each of both
CASES = [
    pytest.param(model, machine, OF_TRANSFORMERS[(row + column) % 4], marks=[] if model in QUICK else pytest.mark.slow)
    for row, model in enumerate(MODELS)
    for column, machine in enumerate(MACHINES)
]


@functools.cache
def real(name):
    skeleton = read_skeleton(resolve(str(CONFIGS / name)))
    return skeleton, ask(skeleton)


@functools.cache
def small(name):
    skeleton = small_models.skeleton(name)
    return skeleton, ask(skeleton)


def scaled(machine, total):
    return {device: int(share * total) for device, share in machine.items()}


@pytest.mark.parametrize(("model", "machine", "strategy"), one_in(3, CASES))
def test_real_models(model, machine, strategy):
    skeleton, upstream = real(model)
    assert_parity(skeleton, upstream, strategy, scaled(MACHINES[machine], sizes(skeleton.tree)[""]))


def random_machine(rng, total):
    count = rng.randint(0, 5)
    ids = range(count) if rng.random() < 0.8 else sorted(rng.sample(range(8), count))
    even = rng.random() < 0.5
    scale = total * rng.uniform(0.3, 2.5) / max(count, 1)
    machine = {i: int(scale * (1 if even else rng.uniform(0, 2))) for i in ids}
    if rng.random() < 0.1 and machine:
        machine[next(iter(machine))] = 0
    if rng.random() < 0.8 or not machine:
        machine["cpu"] = int(total * rng.uniform(0, 1.2))
    if rng.random() < 0.2:
        machine["disk"] = int(total * rng.uniform(0, 1.2))
    return machine


@pytest.mark.parametrize(
    ("model", "rounds"),
    one_in(
        2,
        [
            ("llama", 12),
            ("mixtral", 12),
            ("t5", 12),
            ("bert", 12),
            *slow(*((model, 40) for model in small_models.TINY)),
        ],
    ),
)
def test_small_models_on_random_machines(model, rounds):
    skeleton, upstream = small(model)
    rng = random.Random(model)
    total = sizes(skeleton.tree)[""]
    outcomes = Counter(
        assert_parity(skeleton, upstream, strategy, random_machine(rng, total))
        for _ in range(rounds)
        for strategy in OF_TRANSFORMERS
    )
    assert outcomes["equal"] > 2 * rounds, outcomes


@pytest.mark.parametrize("strategy", OF_TRANSFORMERS)
@pytest.mark.parametrize(
    "free",
    one_in(4, [{}, {0: 0.5}, {0: 1.2}, {0: 0.6, 1: 0.6}, {0: 0.0, 1: 0.9}, {0: 0.4, 1: 1.0, 2: 0.3}, {"mps": 0.8}]),
)
@pytest.mark.parametrize("model", ["llama-3.1-8b", "t5-11b"])
def test_measured_budgets(model, free, strategy):
    """Without max_memory: what accelerate probes is faked, at its gate, with the numbers of the inventory."""
    skeleton, upstream = real(model)
    total = sizes(skeleton.tree)[""]
    probed = scaled(free, total) | ({} if "mps" in free else {"cpu": int(total * 0.7)})
    inventory = Inventory(
        accelerators=tuple(
            accelerator(Device.mps() if key == "mps" else Device.gpu(key), size)
            for key, size in probed.items()
            if key != "cpu"
        ),
        host=host(int(total * 0.7)),
        disks=(),
    )
    placement = place(skeleton.tree, from_inventory(inventory), strategy)

    def probe(max_memory):
        return dict(probed) if max_memory is None else accelerate_max_memory(max_memory)

    gate = transformers.integrations.accelerate
    accelerate_max_memory = gate.accelerate_max_memory
    with mock.patch.object(gate, "accelerate_max_memory", probe):
        try:
            theirs = upstream.plan(strategy, None)
        except UpstreamError:
            assert any("transformers raises" in note for note in placement.notes)
        else:
            assert to_hf(placement.device_map) == theirs


def accelerator(device, free):
    return Accelerator(
        device=device,
        index=device.id or 0,
        name="X",
        uuid=None,
        memory_total=free,
        memory_free=free,
        memory_pool=HOST_POOL if device == Device.mps() else None,
    )


def host(available):
    return Host(cpu="X", cores_physical=1, cores_logical=1, ram_total=available, ram_available=available)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1KiB", 2**10),
        ("2MiB", 2 * 2**20),
        ("3GiB", 3 * 2**30),
        ("0.7GiB", int(0.7 * 2**30)),
        ("5KB", 5000),
        ("7.5GB", 7_500_000_000),
        ("1.1MB", int(1.1 * 10**6)),
    ],
)
def test_sizes_are_read_as_accelerate_reads_them(text, expected):
    from accelerate.utils.modeling import convert_file_size_to_int

    from devctl.units import parse_size

    assert parse_size(text) == expected == convert_file_size_to_int(text)


# What upstream gets wrong, and devctl says


def placed(model, strategy, machine):
    from tests.upstream import ours

    return ours(real(model)[0], strategy, machine)


def test_a_module_tied_to_something_already_placed():
    skeleton, upstream = small("bert")
    total = sizes(skeleton.tree)[""]
    found = Counter()
    for percent in range(5, 100):
        machine = {0: total * percent // 100, 1: total * percent // 100, "cpu": total}
        found[assert_parity(skeleton, upstream, Strategy.SEQUENTIAL, machine)] += 1
    assert found["upstream raised"] > 0, "the budgets no longer reach the case that this test is about"


def test_the_order_of_tie_groups_is_the_models():
    """In the order of a set, transformers splits lm_head or the decoder first, from run to run."""
    config = transformers.T5Gemma2Config()
    config.architectures = ["T5Gemma2ForConditionalGeneration"]
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        skeleton = read_skeleton(resolve(folder))
    machine = dict.fromkeys(range(5), 5743993758) | {"cpu": 21644665091}
    assert len({source for _, source in skeleton.tree.ties}) > 1
    assert assert_parity(skeleton, ask(skeleton), Strategy.AUTO, machine) == "equal"


def test_buffers_lost_in_a_split():
    skeleton, upstream = small("deberta")
    total = sizes(skeleton.tree)[""]
    found = Counter()
    for step in range(1, 400, 3):
        machine = {0: total * step // 400, "cpu": total // 3}
        found[assert_parity(skeleton, upstream, Strategy.SEQUENTIAL, machine)] += 1
    assert found["upstream lost buffers"] > 0, "the budgets no longer reach the case that this test is about"


@pytest.mark.parametrize("machine", [{1: 20 * GIB, 2: 20 * GIB}, {0: 20 * GIB, 2: 20 * GIB, 3: 20 * GIB}])
def test_balanced_low_0_with_other_ids(machine):
    skeleton, upstream = real("llama-3.1-8b")
    assert assert_parity(skeleton, upstream, Strategy.BALANCED_LOW_0, machine) == "upstream raised"
    low = placed("llama-3.1-8b", Strategy.BALANCED_LOW_0, machine)
    used = {str(use.device): use.used for use in low.devices}
    assert used[f"cuda:{min(machine)}"] < used[f"cuda:{max(machine)}"]


def sweep_classes():
    """Every model class that one of transformers' Auto classes knows, with its config class, once."""
    auto = transformers.models.auto.modeling_auto
    found = {}
    for name, mapping in vars(auto).items():
        if not (name.startswith("MODEL") and name.endswith("_MAPPING") and hasattr(mapping, "_load_attr_from_module")):
            continue
        for config_class in mapping:
            try:
                classes = mapping[config_class]
            except ValueError:  # an entry whose class transformers does not export
                continue
            for model_class in classes if isinstance(classes, list | tuple) else (classes,):
                found.setdefault(model_class, config_class)
    return sorted(found.items(), key=lambda pair: pair[0].__name__)


ARCHITECTURES = Path(__file__).with_name("architectures.md")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_architecture_with_its_default_config(tmp_path):
    """Plans are transformers' own, or a note says why not; optimal offloads no more; and every tensor has a place.

    The table of what came out is kept. `DEVCTL_WRITE_TABLES=1` writes it anew, to be read before it is committed.
    """
    rng = random.Random(0)
    rows, outcomes = [], Counter()
    for at, (model_class, config_class) in enumerate(sweep_classes()):
        try:
            config = config_class()
            config.architectures = [model_class.__name__]
            config.save_pretrained(tmp_path)
            skeleton = read_skeleton(resolve(str(tmp_path)))
            upstream = ask(skeleton)
        except Exception as error:  # noqa: BLE001 - a default config need not build; the table says why
            cause = error.__cause__ or error
            rows.append(f"| {model_class.__name__} | not built: {type(cause).__name__} |")
            continue
        total = sizes(skeleton.tree)[""]
        found = assert_parity(skeleton, upstream, OF_TRANSFORMERS[at % 4], random_machine(rng, total))
        best = ours(skeleton, Strategy.OPTIMAL, random_machine(rng, total))
        placed = dict(best.device_map)
        assert all(device_of(t.name, placed) is not None for t in tensors(skeleton.tree.root)), model_class
        assert all(u.device == Device.disk() or u.used <= (u.budget or 0) for u in best.devices), model_class
        outcomes[found] += 1
        rows.append(f"| {model_class.__name__} | {found} |")
    table = "\n".join(
        [
            "# Every model class of transformers' Auto classes, at its default config",
            "",
            "A plan each on a random machine, by transformers' strategies in turn, so that an architecture's classes",
            "are placed by several; and one by `optimal`: every tensor has a place. `equal`: transformers' own map,",
            "key by key; `upstream raised`: transformers raises an error, and devctl's plan has a note; `upstream lost",
            "buffers`: transformers' map leaves some out, devctl's does not.",
            "",
            "| class | plan |",
            "|---|---|",
            *rows,
            "",
        ]
    )
    print(outcomes, f"{len(rows)} classes")
    if os.environ.get("DEVCTL_WRITE_TABLES"):
        ARCHITECTURES.write_text(table)
    assert outcomes["equal"] / sum(outcomes.values()) > 0.9
    assert table == ARCHITECTURES.read_text()
