"""Plans of quantised models beside transformers' own answers, with its own quantizers."""

import json
import random
from collections import Counter

import pytest

from devctl.models.files.resolve import resolve
from devctl.models.quantised.quantise import Quantize
from devctl.models.skeleton import read_skeleton
from devctl.models.tree import sizes
from devctl.placement.strategy import OF_TRANSFORMERS
from tests import quantised, small_models
from tests.conftest import CONFIGS
from tests.marks import one_in, slow
from tests.placement.greedy.test_parity import random_machine
from tests.upstream import any_environment, ask, assert_parity

UNBUILDABLE = {
    ("gpt-oss", "fp8"),  # experts with a bias
    ("gpt-oss", "fp8 by tensor"),
    ("t5", "higgs"),  # groups wider than the weights
    ("t5", "metal"),
}


ROUNDS = 4
"""Random machines for each model."""


def each_with_each(methods):
    """(model, method), of which each method with one model, of these in turn, is no slow test."""
    models = [*small_models.WIDE]
    cases = []
    for row, method in enumerate(methods):
        turned = [models[(row + column) % len(models)] for column in range(len(models))]
        first = next(model for model in turned if (model, method) not in UNBUILDABLE)
        cases += [pytest.param(m, method, marks=[] if m == first else pytest.mark.slow) for m in models]
    return cases


def assert_same_plans(skeleton, upstream, seed):
    rng = random.Random(seed)
    with any_environment():
        theirs = transformers_sizes(upstream)
    ours = sizes(skeleton.tree)
    assert {name: size for name, size in theirs.items() if size} == {
        name: size for name, size in ours.items() if size
    }, "the bytes that are planned"
    outcomes = Counter(
        assert_parity(skeleton, upstream, strategy, random_machine(rng, ours[""]))
        for _ in range(ROUNDS)
        for strategy in OF_TRANSFORMERS
    )
    assert outcomes["equal"] > 1.6 * ROUNDS, outcomes


def transformers_sizes(upstream):
    from transformers.integrations.accelerate import compute_module_sizes

    return dict(compute_module_sizes(upstream.model, upstream.quantizer, only_modules=False)[0])


@pytest.mark.parametrize(("model", "name"), one_in(3, each_with_each(quantised.CHECKPOINTS)))
def test_checkpoints(model, name, tmp_path):
    settings = quantised.CHECKPOINTS[name]
    if (model, name) in UNBUILDABLE:
        pytest.skip("transformers raises as it builds")
    with quantised.bitsandbytes():
        skeleton = read_skeleton(resolve(str(quantised.write(tmp_path, model, settings))))
        assert_same_plans(skeleton, ask(skeleton, use_kernels=name == "mxfp4"), f"{model} {name}")


@pytest.mark.parametrize(("model", "quantize"), one_in(3, each_with_each(Quantize)))
def test_on_the_fly(model, quantize, tmp_path):
    if (model, quantize) in UNBUILDABLE:
        pytest.skip("transformers raises as it builds")
    if quantize.startswith("quanto"):
        pytest.importorskip("optimum.quanto")
    with quantised.bitsandbytes(), quantised.torchao():
        skeleton = read_skeleton(resolve(str(quantised.write(tmp_path, model))), quantize=quantize)
        upstream = ask(
            skeleton,
            quantization_config=quantised.on_the_fly(quantize),
            use_kernels=quantize is Quantize.MXFP4,
        )
        assert_same_plans(skeleton, upstream, f"{model} {quantize}")


@pytest.mark.parametrize("name", quantised.COMPRESSED)
def test_compressed_tensors(name, tmp_path):
    pytest.importorskip("compressed_tensors")
    skeleton = read_skeleton(resolve(str(quantised.write(tmp_path, "llama", quantised.COMPRESSED[name]))))
    assert_same_plans(skeleton, ask(skeleton), name)


@pytest.mark.parametrize(
    ("model", "settings"), [("gpt-oss-120b", quantised.MXFP4), *slow(("deepseek-v3", quantised.FP8))]
)
def test_real_models(model, settings, tmp_path):
    config = json.loads((CONFIGS / model / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    skeleton = read_skeleton(resolve(str(tmp_path)))
    assert_same_plans(skeleton, ask(skeleton, use_kernels=model == "gpt-oss-120b"), model)


@pytest.mark.parametrize("model", one_in(3, ["llama", "opt", "t5"]))
def test_float16(model, tmp_path):
    """Modules that stay in float32 are not quantised."""
    settings = quantised.CHECKPOINTS["fp8"]
    skeleton = read_skeleton(resolve(str(quantised.write(tmp_path, model, settings, dtype="float16"))))
    assert_same_plans(skeleton, ask(skeleton), model)
