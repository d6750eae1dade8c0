"""The installed planner, asked about a model on meta."""

import json
import logging
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from unittest import mock

import accelerate.utils.modeling
import pytest
import torch
import transformers
import transformers.integrations.accelerate as planner
import transformers.modeling_utils

from devctl.devices import Device
from devctl.models.files.resolve import resolve
from devctl.models.quantised.quantise import Quantize
from devctl.models.skeleton import read_skeleton
from devctl.models.tree import sizes
from devctl.models.upstream import ask
from devctl.placement.budget import Budgets
from devctl.placement.counted import as_it_is
from devctl.placement.greedy.walk import greedy_map
from devctl.placement.placement import to_hf
from devctl.placement.strategy import OF_TRANSFORMERS
from tests import quantised, small_models
from tests.marks import one_in, slow
from tests.upstream import ask as ask_from_pretrained

MACHINES = [
    {0: 0.6, 1: 0.6, "cpu": 1.5},
    {0: 0.1, 1: 0.3, 2: 0.2, "cpu": 0.2},
    {0: 0.7, "cpu": 1.0},
    {"mps": 0.6, "cpu": 1.0},
    {"cpu": 0.8, "disk": 0.1},
]


def scaled(machine, skeleton):
    total = sizes(skeleton.tree)[""]
    return {device: int(share * total) for device, share in machine.items()}


@pytest.mark.parametrize("strategy", OF_TRANSFORMERS)
@pytest.mark.parametrize("model", one_in(2, ["llama-tied", "gpt-oss", "whisper", "clip"]))
def test_it_answers_what_from_pretrained_would(model, strategy):
    skeleton = small_models.skeleton(model)
    upstream = ask_from_pretrained(skeleton)
    for machine in MACHINES:
        memory = scaled(machine, skeleton)
        assert ask(skeleton, memory, str(strategy), True) == upstream.plan(strategy, memory)


@pytest.mark.parametrize("strategy", OF_TRANSFORMERS)
def test_measured_memory_comes_as_if_it_were_probed(strategy):
    skeleton = small_models.skeleton("llama")
    memory = scaled({0: 1.05, "cpu": 1.0}, skeleton)
    ours = greedy_map(as_it_is(skeleton.tree), as_budgets(memory, given=False), strategy).device_map
    assert ask(skeleton, memory, str(strategy), False) == to_hf(ours.items())
    if strategy != "sequential":
        assert ask(skeleton, memory, str(strategy), True) != to_hf(ours.items()), "a tenth is kept free"


def as_budgets(memory, *, given):
    devices = tuple((Device.gpu(k) if isinstance(k, int) else Device.from_str(k), v) for k, v in memory.items())
    return Budgets(devices=devices, given=given)


def test_no_device_is_probed(monkeypatch):
    def probed(*_, **__):
        raise AssertionError("probed")

    for place, name in [
        (planner, "accelerate_max_memory"),
        (accelerate.utils.modeling, "get_max_memory"),
        (torch.cuda, "is_available"),
        (torch.cuda, "device_count"),
        (torch.cuda, "memory_reserved"),
    ]:
        monkeypatch.setattr(place, name, probed)
    skeleton = small_models.skeleton("llama")
    for given in (True, False):
        for strategy in OF_TRANSFORMERS:
            assert isinstance(ask(skeleton, scaled(MACHINES[0], skeleton), str(strategy), given), dict)


def test_nothing_stays_replaced():
    modules = (planner, transformers.modeling_utils, accelerate.utils.modeling)
    before = [dict(vars(module)) for module in modules]
    skeleton = small_models.skeleton("bert")
    ask(skeleton, scaled(MACHINES[1], skeleton), "auto", True)
    assert [dict(vars(module)) for module in modules] == before


def test_nothing_is_said(capfd):
    told = []
    handler = logging.Handler()
    handler.emit = told.append
    loggers = [logging.getLogger(name) for name in ("transformers", "accelerate", "accelerate.utils.modeling")]
    levels = [logger.level for logger in loggers]
    skeleton = small_models.skeleton("whisper")
    try:
        for logger in loggers:
            logger.addHandler(handler)
            logger.setLevel(logging.DEBUG)
        for machine in MACHINES:
            for strategy in OF_TRANSFORMERS:
                ask(skeleton, scaled(machine, skeleton), str(strategy), True)
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
    assert told == []
    assert capfd.readouterr() == ("", "")


def test_threads_do_not_disturb_each_other():
    """Nor a plan of transformers' own, which a user's code makes meanwhile."""
    skeletons = [small_models.skeleton(name) for name in ("llama", "bert", "t5")]
    questions = [(s, scaled(m, s), str(x)) for s in skeletons for m in MACHINES for x in OF_TRANSFORMERS] * 3
    expected = [ask(s, memory, strategy, True) for s, memory, strategy in questions]
    start = threading.Barrier(4)

    def own_plan(_):
        start.wait()
        model = skeletons[0].model
        return [planner._get_device_map(model, "sequential", {"cpu": 10**9}, None) for _ in range(50)]

    def answers(part):
        start.wait()
        return [ask(s, memory, strategy, True) for s, memory, strategy in part]

    with ThreadPoolExecutor(4) as pool:
        theirs = pool.submit(own_plan, None)
        found = list(pool.map(answers, (questions, questions[::-1], questions)))
    assert found == [expected, expected[::-1], expected]
    assert all(device_map == {"": "cpu"} for device_map in theirs.result())


def test_the_order_of_tie_groups_is_the_models():
    config = transformers.T5Gemma2Config()
    config.architectures = ["T5Gemma2ForConditionalGeneration"]
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        skeleton = read_skeleton(resolve(folder))
    memory = dict.fromkeys(range(5), 5743993758) | {"cpu": 21644665091}
    ours = greedy_map(as_it_is(skeleton.tree), as_budgets(memory, given=True), "auto").device_map
    assert ask(skeleton, memory, "auto", True) == to_hf(ours.items())


def test_a_planner_that_raises_is_told():
    skeleton = small_models.skeleton("llama")
    answer = ask(skeleton, {1: 10**9, 2: 10**9}, "balanced_low_0", True)
    assert answer == (
        f"transformers {transformers.__version__} raises KeyError (0) where it plans this: the map is devctl's own"
    )


def test_a_planner_that_is_not_where_it_was_is_told(monkeypatch):
    monkeypatch.delattr(planner, "_get_device_map")
    skeleton = small_models.skeleton("llama")
    assert "keeps its planner elsewhere" in ask(skeleton, {0: 10**9}, "auto", True)
    with mock.patch.dict("sys.modules", {"transformers.integrations.accelerate": None}):
        monkeypatch.delattr(transformers.integrations, "accelerate")
        assert "keeps its planner elsewhere" in ask(skeleton, {0: 10**9}, "auto", True)


@pytest.mark.parametrize("name", ["bitnet", *slow("fp8", "eetq")])
def test_a_quantised_model_is_asked_about_with_its_quantizer(name, tmp_path):
    skeleton = read_skeleton(resolve(str(quantised.write(tmp_path, "llama", quantised.CHECKPOINTS[name]))))
    assert skeleton.quantizer is not None
    for machine in MACHINES:
        memory = scaled(machine, skeleton)
        for strategy in OF_TRANSFORMERS:
            ours = greedy_map(as_it_is(skeleton.tree), as_budgets(memory, given=True), strategy).device_map
            assert ask(skeleton, memory, str(strategy), True) == to_hf(ours.items())


@pytest.mark.parametrize("settings", [quantised.GPTQ, quantised.CHECKPOINTS["bnb 4-bit"]])
def test_nothing_is_asked_without_a_quantizer(settings, tmp_path):
    skeleton = read_skeleton(resolve(str(quantised.write(tmp_path, "llama", settings))))
    assert skeleton.tree.quantisation is not None
    assert ask(skeleton, {0: 10**9}, "auto", True) is None


def test_nothing_is_asked_without_the_built_model():
    assert ask(replace(small_models.skeleton("llama"), model=None), {0: 10**9}, "auto", True) is None


def test_what_could_not_be_counted_is_asked_about_as_it_is_planned(tmp_path):
    skeleton = read_skeleton(resolve(str(quantised.write(tmp_path, "llama", {"quant_method": "unheard of"}))))
    assert skeleton.tree.quantisation is None, json.dumps(skeleton.tree.notes)
    assert ask(skeleton, {0: 10**9}, "auto", True) == {"": 0}


def test_quantising_on_the_fly_is_asked_about(tmp_path):
    skeleton = read_skeleton(resolve(str(quantised.write(tmp_path, "llama"))), quantize=Quantize.FP8)
    memory = scaled(MACHINES[0], skeleton)
    ours = greedy_map(as_it_is(skeleton.tree), as_budgets(memory, given=True), "auto").device_map
    assert ask(skeleton, memory, "auto", True) == to_hf(ours.items())
