"""GGUF files, asked by a program."""

import pytest

import devctl
from devctl.export import llama_cpp
from devctl.models.gguf import layout
from devctl.placement.whole_layers import STRATEGY
from devctl.planning import question
from tests import gguf_files as files

CASES = [
    ("llama", files.LLAMA, 0, True),
    ("qwen2moe", files.MOE, 4, False),
    ("qwen3moe", files.MOE, 4, False),
    ("gemma3", files.GEMMA3, 0, True),
    ("deepseek2", files.DEEPSEEK2, 4, False),
]


@pytest.fixture
def llama(tmp_path):
    return files.write(tmp_path / "m.gguf")


@pytest.mark.parametrize(("architecture", "keys", "experts", "tied"), CASES)
@pytest.mark.parametrize("machine", ["24GiB", "2x24GiB,cpu=1GiB", "3MiB,2MiB,cpu=1GiB", "1MiB,cpu=1GiB"])
def test_every_byte_is_on_a_device(tmp_path, architecture, keys, experts, tied, machine):
    given = files.tensors(keys, experts=experts, tied=tied)
    path = files.write(tmp_path / "m.gguf", architecture, keys, given)
    plan = devctl.plan(path, machine, context_length=512, overhead=0)
    model = devctl.open_model(path)
    layout, states = model.gguf.layout, model.gguf.states
    size, where = model.tree.index.held, dict(plan.placement.device_map)
    assert size[""] == sum(data.nbytes for _, data in given.values())
    for use in plan.placement.devices:
        here = [name for name in layout.layers if where[name] == use.device]
        used = sum(size[name] for name in (*layout.first, *layout.last, *here) if where[name] == use.device)
        used += sum(size[name] for name in layout.everywhere if here)
        used += layout.tied if where["output_norm"] == use.device != where["token_embd"] else 0
        assert use.used == used
        kept = zip(layout.layers, states.layers, strict=True)
        kept_in = devctl.models.gguf.state.CACHE_TYPES[None]
        assert use.state == sum(state.nbytes(512, 1, kept_in) for name, state in kept if name in here)
    assert plan.placement.strategy == STRATEGY
    assert plan.fits


def test_a_plan_says_what_it_is(llama):
    plan = devctl.plan(llama, "2x24GiB", context_length=1024, batch_size=2)
    assert plan.fits
    assert str(plan.device_map["blk.0"]) == "cuda:0"
    assert plan.engine == "llama.cpp's weights and KV cache; its compute buffers are not known"
    assert any("llama-fit-params" in note for note in plan.notes)
    assert plan.to_document()["workload"]["batch_size"] == 2
    with pytest.raises(devctl.RefusedError, match="is a plan of a GGUF file"):
        plan.to_hf()


def test_one_that_is_opened_is_asked_again_and_again(llama):
    model = devctl.open_model(llama)
    assert (model.made_for, model.planned.quantisation, model.may_be_quantised) == (4096, "Q4_K_M", False)
    assert list(model.smaller()) == []
    plans = [devctl.plan(model, "24GiB", context_length=tokens) for tokens in (256, 1024)]
    first, second = (plan.placement.devices[0].state for plan in plans)
    assert second == 4 * first


def test_a_plan_that_does_not_fit_is_no_exception(llama):
    plan = devctl.plan(llama, max_memory={0: "100KiB", "cpu": "100KiB"})
    assert not plan.fits
    assert "cpu is given" in plan.refusal.findings[0]


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({"strategy": "optimal"}, "leave out strategy"),
        ({"device_map": {"": "cpu"}}, "leave out device_map"),
        ({"tp": 2}, "leave out tp"),
        ({"new_tokens": 2, "context_length": 64}, "leave out new_tokens"),
        ({"disk": False}, "leave out disk=False"),
        ({"quantize": "nf4"}, "leave out quantize"),
        ({"dtype": "float16"}, "dtype: .* is a GGUF file, which is as it is"),
        ({"kv_dtype": "float8_e4m3fn", "context_length": 64}, "kv_dtype float8_e4m3fn: llama.cpp has no such cache"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_changes_nothing_is_refused_by_its_keyword(llama, keywords, said):
    with pytest.raises(devctl.UsageError, match=said):
        devctl.plan(llama, "24GiB", **keywords)


def test_answers_about_transformers_are_refused(llama):
    model = devctl.open_model(llama)
    for ask in (
        lambda: devctl.compare(model, "24GiB"),
        lambda: devctl.capacity(model, "24GiB"),
        lambda: devctl.fits_on(model, "24GiB"),
        lambda: devctl.plan(model, {"a": "24GiB", "b": "24GiB"}),
        lambda: devctl.compare(model, {"a": "24GiB", "b": "24GiB"}),
    ):
        with pytest.raises(devctl.UsageError, match=r"is a GGUF file, which is planned for llama\.cpp"):
            ask()


def test_its_plan_is_checked_and_not_loaded(llama, tmp_path):
    plan = devctl.plan(llama, max_memory={"cpu": "64MiB"}, context_length=512)
    assert devctl.check(device_map=plan).ok
    with pytest.raises(devctl.RefusedError, match="is a plan of a GGUF file"):
        devctl.load(tmp_path, plan)
    with pytest.raises(devctl.ModelError, match=r"is a GGUF file, which llama\.cpp runs"):
        devctl.load(llama)


def test_the_state_of_a_window_does_not_grow(tmp_path):
    path = files.write(tmp_path / "m.gguf", "gemma3", files.GEMMA3)
    short, long = (devctl.plan(path, "24GiB", context_length=tokens) for tokens in (2048, 4096))
    row = 2 * 2 * 64 * 2
    assert short.placement.devices[0].state == row * (6 * 1024 + 2048)
    assert long.placement.devices[0].state == row * (6 * 1024 + 4096)


def test_room_for_compute_buffers_is_kept_and_told(llama):
    def asked(**keywords):
        plan = devctl.plan(llama, "24GiB", **keywords)
        note = next(note for note in plan.notes if "compute buffers are not known" in note)
        return plan.placement.devices[0].overhead, note

    usual = question.MOST_OVERHEAD
    overhead, note = asked(context_length=512)
    assert overhead == usual + 2**30
    assert "1.00 GiB of each GPU is kept for them" in note
    overhead, note = asked(context_length=512, overhead="3GiB")
    assert overhead == 3 * 2**30
    assert "what --overhead says is for them and for libraries" in note
    overhead, note = asked()
    assert overhead == 0
    assert "24.0 GiB are left on cuda:0" in note


def test_the_longest_context_leaves_as_few_layers_on_the_cpu_as_the_shortest(llama):
    """In what weights alone leave there may be no room for a text."""
    limits = {0: "1100KiB", "cpu": "1GiB"}
    weights = devctl.plan(llama, max_memory=limits)
    assert weights.placement.device_map["blk.1"] == devctl.Device.cpu() != weights.placement.device_map["blk.2"]
    plan = devctl.plan(llama, max_memory=limits, max_context=True, overhead=0)
    assert plan.max_context.this_map >= 256
    shortest = devctl.plan(llama, max_memory=limits, context_length=1, overhead=0)
    assert plan.placement.device_map == shortest.placement.device_map


def test_engines_know_the_plan_of_a_gguf_file_by_one_word():
    assert llama_cpp.GGUF == layout.DTYPE
