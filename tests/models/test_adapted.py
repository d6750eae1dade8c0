"""What adapters hold beside a model, against what PEFT holds once it has loaded them."""

import pytest

from devctl.errors import UntracedError
from devctl.models.adapted import adapted, find_beside
from devctl.models.adapters import read_adapter
from devctl.models.footprint import Kernels, Workload, peak_bytes
from devctl.planning.model import open_model
from devctl.planning.request import ModelRequest
from tests import adapters, metered
from tests.marks import one_in, slow

FAST = ("float32",)
"""Of what is measured: a plain adapter."""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder, known = tmp_path_factory.mktemp("adapters"), {}

    def get(name):
        if name not in known:
            known[name] = adapters.make(name, folder / name.replace(" ", "_"))
        return known[name]

    return get


def opened(made, **changes):
    return open_model(ModelRequest(model=str(made.base), **changes))


@pytest.mark.parametrize("name", one_in(4, adapters.CASES))
def test_each_module_holds_what_it_does_once_PEFT_has_loaded_the_adapter(made, name):
    case = made(name)
    plain, whole = adapters.loaded(case)
    before, after = adapters.by_module(adapters.held(plain)), adapters.by_module(adapters.held(whole))
    tree = opened(case).tree
    found = {}
    for tensor, nbytes in find_beside(tree, read_adapter(str(case.adapter))).nbytes.items():
        module = tensor.rpartition(".")[0]
        found[module] = found.get(module, 0) + nbytes
    assert found == {name: size - before.get(name, 0) for name, size in after.items() if size != before.get(name, 0)}
    more = adapted(tree, read_adapter(str(case.adapter))).index.held[""] - tree.index.held[""]
    assert more == sum(adapters.held(whole).values()) - sum(adapters.held(plain).values()) > 0


def test_an_adapter_is_where_its_module_is_and_a_map_of_transformers_stays_what_it_is(made):
    case = made("a copied head that is tied")
    tree = opened(case).tree
    more = adapted(tree, read_adapter(str(case.adapter)))
    assert dict(more.index.nbytes) == dict(tree.index.nbytes)
    assert more.index.held["lm_head"] - tree.index.held["lm_head"] == 128 * 32 * 2
    assert more.index.held["model.embed_tokens"] == tree.index.held["model.embed_tokens"]
    name = "model.layers.0.self_attn.q_proj"
    assert more.index.held[name] - tree.index.held[name] == 4 * (4 * 32 + 32 * 4)


def test_two_adapters_hold_what_each_does(made):
    one, other = made("plain"), made("copies")
    tree = opened(one).tree
    both = adapted(tree, read_adapter(str(one.adapter)), read_adapter(str(other.adapter)))
    each = [adapted(tree, read_adapter(str(made.adapter))).index.held[""] for made in (one, other)]
    assert both.index.held[""] == sum(each) - tree.index.held[""]


def test_an_adapter_is_loaded_in_the_same_bytes_from_a_file_in_half_precision(made, tmp_path):
    from safetensors.torch import load_file, save_file

    case = made("plain")
    config = (case.adapter / "adapter_config.json").read_text()
    (tmp_path / "adapter_config.json").write_text(config)
    weights = load_file(case.adapter / "adapter_model.safetensors")
    save_file({name: tensor.bfloat16() for name, tensor in weights.items()}, tmp_path / "adapter_model.safetensors")
    tree = opened(case).tree
    there, here = (find_beside(tree, read_adapter(str(each))).nbytes for each in (case.adapter, tmp_path))
    assert there == here


@pytest.mark.parametrize("name", [*FAST, *slow(*(each for each in adapters.MEASURED if each not in FAST))])
def test_the_traced_peak_is_what_PEFT_takes(made, name):
    case = made(f"measured {name}")
    workload = Workload(context_length=512, new_tokens=2, batch_size=2, padded=False, kernels=Kernels.CPU)
    alone, predicted = (
        peak_bytes(opened(case, adapters=beside).footprints.of(workload)) for beside in ((), (str(case.adapter),))
    )
    _, model = adapters.loaded(case)
    measured = metered.peak_of(lambda: metered.run(model.base_model.model.eval(), workload))
    assert -0.02 <= predicted / measured - 1 <= 0.02
    assert predicted > alone


def test_two_adapters_are_traced_as_if_both_computed(made):
    one, other = made("a pattern"), made("plain")
    workload = Workload(context_length=32, new_tokens=1, batch_size=2, padded=False)
    alone, both = (
        opened(one, adapters=beside).footprints.of(workload)
        for beside in ((str(one.adapter),), (str(one.adapter), str(one.adapter), str(other.adapter)))
    )
    assert peak_bytes(both) > peak_bytes(alone)


def test_without_PEFT_what_an_adapter_computes_is_not_counted_and_said_so(made, monkeypatch):
    monkeypatch.setattr("devctl.planning.footprints.peft_version", lambda: None)
    case = made("plain")
    with pytest.raises(UntracedError, match="is traced with PEFT, which is not installed"):
        opened(case, adapters=(str(case.adapter),), cache=False).footprints.of(Workload(context_length=32))
