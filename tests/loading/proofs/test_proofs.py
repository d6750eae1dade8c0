"""Every proof of a load, holding and failing."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from devctl.devices import Device
from devctl.errors import LoadError
from devctl.loading import measure
from devctl.loading.proofs import copies, places, reference, watch
from devctl.loading.proofs.compare import compare, tolerance_of
from devctl.loading.proofs.verdict import judge_proofs
from devctl.loading.run import smoke
from devctl.loading.run.inputs import prepare
from devctl.loading.weights import loader
from devctl.loading.weights.loader import LoadFormat
from devctl.models.files.resolve import resolve
from devctl.models.skeleton import read_skeleton
from tests import small_models
from tests.marks import one_in, slow

CPU, DISK = Device.cpu(), Device.disk()


@dataclasses.dataclass
class Loaded:
    source: object
    skeleton: object
    model: object
    folder: Path

    @property
    def tree(self):
        return self.skeleton.tree

    @property
    def blocks(self):
        return watch.block_names(self.tree)

    def run(self, **options):
        inputs = prepare(self.source, self.skeleton, prompt=None, new_tokens=3, trust_remote_code=False)
        return smoke.run(self.model, inputs, device=CPU, blocks=self.blocks, **{"new_tokens": 0, **options})

    def verify(self, kind=reference.Reference.RAM):
        inputs = prepare(self.source, self.skeleton, prompt=None, new_tokens=3, trust_remote_code=False)
        placed = load_on(self.source, self.skeleton, reference.reference_map(kind), self.folder / "reference")
        forward = smoke.forward_arguments(self.model, inputs, CPU)
        return reference.verify(self.model, placed, forward, self.blocks, dtype=self.tree.dtype, kind=kind)

    def proofs(self, **changes):
        values = {
            "tensors": 1,
            "misplaced": (),
            "ties": places.Ties(shared=0, copied=(), untied=()),
            "copies": (),
            "verification": None,
            **changes,
        }
        ran = values.pop("smoke", None) or self.run()
        return {str(p.name): p for p in judge_proofs(**values, smoke=ran, blocks=self.blocks)}


def load_on(source, skeleton, device_map, folder, load_format=LoadFormat.AUTO):
    return loader.load(
        source, skeleton, device_map, load_format=load_format, folder=folder, on_progress=lambda _: None
    )[0]


@pytest.fixture
def loaded(checkpoint, tmp_path):
    """A small model on a device map: ``loaded("llama", {"": DISK}).model``."""

    def get(name, device_map=None, load_format=LoadFormat.AUTO):
        source = resolve(str(checkpoint(name)))
        skeleton = read_skeleton(source)
        model = load_on(source, skeleton, device_map or {"": CPU}, tmp_path / "offload", load_format)
        return Loaded(source, skeleton, model, tmp_path)

    return get


# blocks


@pytest.mark.parametrize(
    ("name", "some", "count"),
    [
        ("llama", ("model.embed_tokens", "model.layers.0", "model.norm", "lm_head"), 8),
        ("t5", ("encoder.block.1", "decoder.block.0", "shared"), 10),
        ("gpt2", ("transformer.h.3", "transformer.wte"), 8),
        ("vit", ("vit.embeddings", "classifier"), None),
    ],
)
def test_blocks_are_what_runs_and_has_tensors(name, some, count):
    tree = small_models.skeleton(name).tree
    blocks = watch.block_names(tree)
    assert set(some) <= set(blocks)
    assert count is None or len(blocks) == count
    assert not any(a != b and b.startswith(a + ".") for a in blocks for b in blocks)


def test_the_block_of_a_tensor():
    blocks = watch.block_names(small_models.skeleton("llama").tree)
    assert watch.block_of("model.layers.1.mlp.up_proj.weight", blocks) == "model.layers.1"
    assert watch.block_of("elsewhere.weight", blocks) == "elsewhere"


# tensors and ties


def test_the_block_of_a_misplaced_tensor_is_named(loaded):
    llama = loaded("llama")
    claimed = {"model.embed_tokens": CPU, "model.layers": DISK, "model.norm": CPU, "lm_head": CPU, "model": CPU}
    found = places.find_places(llama.model, claimed)
    told = llama.proofs(tensors=found.count, misplaced=found.misplaced)["tensors"]
    assert not told.passed
    assert told.block == "model.layers.0"


@pytest.mark.parametrize("device", [CPU, DISK])
@pytest.mark.parametrize("load_format", LoadFormat)
@pytest.mark.parametrize(("name", "count"), one_in(2, [("llama-tied", 1), ("llama", 0), *slow(("t5", 2), ("bert", 2))]))
def test_ties_are_shared(loaded, name, count, device, load_format):
    model = loaded(name, {"": device}, load_format)
    ties = places.find_ties(model.model, model.tree)
    assert ties == places.Ties(shared=len(model.tree.ties), copied=(), untied=())
    assert ties.shared >= count
    assert ("ties" in model.proofs(ties=ties)) == bool(count)


def test_a_broken_tie_is_named(loaded):
    llama = loaded("llama-tied")
    llama.model.lm_head.weight = torch.nn.Parameter(llama.model.lm_head.weight.detach().clone())
    ties = places.find_ties(llama.model, llama.tree)
    assert ties.untied == ("lm_head.weight = model.embed_tokens.weight",)
    told = llama.proofs(ties=ties)["ties"]
    assert (told.passed, told.block) == (False, "lm_head")
    assert "1 no longer one tensor" in told.said


def test_a_tie_that_the_map_splits_is_a_copy(loaded):
    llama = loaded("llama-tied")
    where = {"model.embed_tokens.weight": (CPU, 1), "lm_head.weight": (Device.gpu(0), 2)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(places, "_find_by_name", lambda _, name: where[name])
        ties = places.find_ties(llama.model, llama.tree)
    told = llama.proofs(ties=ties)["ties"]
    assert told.passed
    assert told.said == "1 copied, as the map splits them: lm_head.weight = model.embed_tokens.weight"


# outputs


def perturb(model, name, change):
    """Change what a block returns."""

    def hook(_, __, output):
        if isinstance(output, tuple):
            return (change(output[0]), *output[1:])
        return change(output)

    return model.get_submodule(name).register_forward_hook(hook)


def test_the_first_block_with_a_nan_is_named(loaded):
    llama = loaded("llama")
    perturb(llama.model, "model.layers.2", lambda hidden: hidden.masked_fill(hidden == hidden.max(), float("nan")))
    told = llama.proofs()["outputs"]
    assert (told.passed, told.block) == (False, "model.layers.2")
    assert told.said == "NaN or infinite: logits; first in model.layers.2"


def test_a_second_forward_gives_the_same_bits(loaded):
    ran = loaded("llama").run()
    assert ran.repeated.bit_equal
    assert ran.repeated.steady
    assert ran.repeated.worst is None


def test_a_block_that_differs_each_time_is_named(loaded):
    llama = loaded("llama")
    calls = iter(range(100))
    perturb(llama.model, "model.layers.1", lambda hidden: hidden + 1e-5 * next(calls))
    ran = llama.run()
    assert not ran.repeated.steady
    told = llama.proofs(smoke=ran)["repeat"]
    assert (told.passed, told.block) == (False, "model.layers.1")
    assert "a second forward differs, which it should not: logits by " in told.said


def test_an_accelerator_may_differ_a_little_which_is_told(loaded):
    llama = loaded("llama")
    first = {"logits": torch.ones(4)}
    second = {"logits": torch.ones(4) + 1e-5}
    calls = iter(range(100))
    perturb(llama.model, "lm_head", lambda logits: logits + 1e-5 * next(calls))
    inputs = prepare(llama.source, llama.skeleton, prompt=None, new_tokens=0, trust_remote_code=False)
    repeated = smoke._repeated(llama.model, first, second, llama.blocks, inputs.tensors, Device.gpu(0))
    assert (repeated.bit_equal, repeated.steady, repeated.block) == (False, True, "lm_head")
    told = llama.proofs(smoke=dataclasses.replace(llama.run(), repeated=repeated))["repeat"]
    assert told.passed
    assert "within the 0.001 of an accelerator: logits by 1e-05 (relative 1e-05); first in lm_head" in told.said
    much = {"logits": torch.ones(4) * 2}
    assert not smoke._repeated(llama.model, first, much, llama.blocks, inputs.tensors, Device.gpu(0)).steady


def test_models_that_draw_random_numbers_draw_the_same(loaded):
    llama = loaded("llama")
    perturb(llama.model, "model.layers.1", lambda hidden: hidden + torch.rand_like(hidden))
    assert llama.run().repeated.bit_equal


# the reference


@pytest.mark.parametrize("kind", reference.Reference)
@pytest.mark.parametrize(
    "name", one_in(3, ["llama-tied", "t5", "clip", *slow("mixtral", "whisper", "bert", "mamba", "gpt2")])
)
def test_a_sound_model_agrees_with_its_reference(loaded, name, kind):
    model = loaded(name)
    found = model.verify(kind)
    assert found.passed
    assert found.worst_block.worst.absolute == 0
    assert (found.worst_output is not None) == (kind is reference.Reference.RAM)
    assert found.blocks >= 4
    assert "bit by bit" in model.proofs(verification=found)["reference"].said


@pytest.mark.parametrize("kind", reference.Reference)
@pytest.mark.parametrize("dtype", one_in(2, ["float32", "bfloat16"]))
def test_a_block_whose_output_is_wrong_is_named(loaded, kind, dtype):
    llama = loaded("llama")
    if dtype == "bfloat16":
        llama.skeleton = read_skeleton(llama.source, dtype=dtype)
        llama.model = load_on(llama.source, llama.skeleton, {"": CPU}, None)
    perturb(llama.model, "model.layers.2", lambda hidden: hidden + (hidden == hidden.max()).to(hidden.dtype) / 2)
    found = llama.verify(kind)
    assert not found.passed
    assert found.first_wrong.block == "model.layers.2"
    assert found.first_wrong.worst.absolute == pytest.approx(0.5, rel=0.01)
    told = llama.proofs(verification=found)["reference"]
    assert (told.passed, told.block) == (False, "model.layers.2")
    allowed = tolerance_of(dtype).block
    assert "model.layers.2 is the first wrong block: output by 0.5 (relative " in told.said
    assert told.said.endswith(f"allowed {allowed:g}")


@pytest.mark.parametrize("kind", reference.Reference)
def test_a_weight_that_changed_after_loading_is_found(loaded, kind):
    llama = loaded("llama", {"model": CPU, "lm_head": CPU, "model.layers.3": DISK})
    with torch.no_grad():
        llama.model.model.layers[1].mlp.down_proj.weight[3, 5] += 1
    found = llama.verify(kind)
    assert found.first_wrong.block == "model.layers.1"
    assert not found.passed


def test_an_error_between_blocks_is_told(loaded):
    llama = loaded("llama")
    perturb(llama.model, "", lambda output: type(output)(logits=output.logits * 1.5))
    found = llama.verify()
    assert found.first_wrong is None
    assert not found.passed
    assert (
        "every block alone agrees, the outputs do not: logits by" in llama.proofs(verification=found)["reference"].said
    )
    assert llama.verify(reference.Reference.DISK).passed  # it sees blocks alone


def test_a_block_that_can_not_run_alone_is_told(loaded, monkeypatch):
    llama = loaded("llama")
    whole = reference._on_cpu
    monkeypatch.setattr(reference, "_on_cpu", lambda value: () if isinstance(value, tuple) else whole(value))
    found = llama.verify()
    assert found.not_compared
    assert "not compared: " in llama.proofs(verification=found)["reference"].said


def test_nothing_compared_is_no_proof(loaded):
    llama = loaded("llama")
    found = dataclasses.replace(llama.verify(reference.Reference.DISK), blocks=0, worst_block=None)
    told = llama.proofs(verification=found)["reference"]
    assert (told.passed, told.said) == (False, "nothing could be compared")


@pytest.mark.parametrize(
    ("needed", "on_cpu", "available", "fits"), [(8, 1, 10, True), (8, 2, 10, False), (8, 0, None, False)]
)
def test_when_a_second_copy_fits_in_ram(needed, on_cpu, available, fits):
    assert reference.fits_in_ram(needed, on_cpu, available) is fits


# comparing


@pytest.mark.parametrize(
    ("found", "expected", "absolute", "too_much"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0, False),
        ([1.0, 2.0], [1.0, 2.01], 0.01, False),
        ([1.0, 2.0], [1.0, 2.5], 0.5, True),
        ([0.0, 2.0], [0.01, 2.0], 0.01, False),  # beside the others, nothing
        ([float("nan"), 2.0], [1.0, 2.0], None, True),
        ([float("nan"), 2.0], [float("nan"), 2.0], 0, False),
        ([float("-inf"), 2.0], [float("-inf"), 2.0], 0, False),
        ([float("inf")], [float("-inf")], None, True),
        ([1.0], [1.0, 2.0], None, True),
        ([0.0], [0.0], 0, False),
        ([1e-3], [0.0], 1e-3, True),
    ],
)
def test_how_far_two_tensors_are_apart(found, expected, absolute, too_much):
    difference = compare("x", torch.tensor(found), torch.tensor(expected), 0.01)
    assert difference.absolute == (absolute if absolute is None else pytest.approx(absolute, rel=1e-4))
    assert difference.is_too_much is too_much
    json.dumps(dataclasses.asdict(difference), allow_nan=False)


# copies between accelerators


GPUS = [Device.gpu(0), Device.gpu(1), Device.gpu(2)]


def test_one_accelerator_copies_to_none():
    assert copies.check_copies(GPUS[:1], copy=None) == ()


def test_copies_that_arrive(loaded):
    made = copies.check_copies(GPUS[:2], copy=lambda sent, source, target: sent.clone())
    assert {c.nbytes for c in made} == {2**20, 2**26}
    assert not any(c.changed for c in made)
    told = loaded("llama").proofs(copies=made)["copies"]
    assert told.passed
    assert told.said == "2 ways between accelerators, no bit changed in 67108864 bytes"


def test_a_corrupt_pair_is_named(loaded):
    def corrupt(sent, source, target):
        arrived = sent.clone()
        if (str(source), str(target)) == ("cuda:0", "cuda:1"):
            arrived[-12:] ^= 1  # a bit each, in the last bytes
        return arrived

    made = copies.check_copies(GPUS, sizes=[2**20], copy=corrupt)
    assert {(str(c.source), str(c.target)) for c in made} == {
        (f"cuda:{a}", f"cuda:{b}") for a in range(3) for b in range(3) if a != b
    }
    told = loaded("llama").proofs(copies=made)["copies"]
    assert (told.passed, told.said) == (False, "cuda:0 → cuda:1 changed 12 of 1048576 bytes")


def test_the_way_from_the_cpu_is_blamed_where_it_is_at_fault(loaded):
    def corrupt(sent, source, target):
        arrived = sent.clone()
        if str(target) == "cuda:2":
            arrived[7] += 1
        return arrived

    made = copies.check_copies(GPUS, sizes=[64], copy=corrupt)
    assert {str(c.source) for c in made if c.changed} == {"cpu"}
    assert loaded("llama").proofs(copies=made)["copies"].said == "cpu → cuda:2 changed 1 of 64 bytes"


def test_torchs_own_way_of_copying():
    assert [c.changed for c in copies.check_copies([CPU, CPU], sizes=[1000])] == [0, 0]


@pytest.mark.parametrize(
    ("error", "said"),
    [(torch.OutOfMemoryError("CUDA"), "out of memory for the 64 MiB"), (RuntimeError("x"), "failed: x")],
)
def test_copies_that_can_not_be_made(error, said):
    def fail(*_):
        raise error

    with pytest.raises(LoadError, match=said):
        copies.check_copies(GPUS, copy=fail)


# peaks


def test_the_peak_of_a_process():
    assert measure.parse_peak("Name:\tpython\nVmHWM:\t  123 kB\nVmRSS:\t 1 kB\n") == 123 * 1024
    for text in ("", "VmHWM:", "VmHWM: ? kB", "VmHWMX: 3 kB"):
        assert measure.parse_peak(text) is None
    assert measure.host_peak() > 2**20


def test_the_peaks_of_accelerators(monkeypatch):
    reset, begun = [], []

    def forget(index):
        assert len(begun) > len(reset), "before it is initialised, torch knows no device: Invalid device argument"
        reset.append(index)

    for part in (torch.cuda, torch.xpu):
        monkeypatch.setattr(part, "init", lambda: begun.append(True))
        monkeypatch.setattr(part, "reset_peak_memory_stats", forget)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda index: 100 + index)
    monkeypatch.setattr(torch.xpu, "max_memory_allocated", lambda index: 200 + index)
    devices = [Device.gpu(1), Device.from_str("xpu:0"), Device.from_str("mps")]
    measure.forget_peaks(devices)
    assert reset == [1, 0]
    assert measure.device_peaks(devices) == {devices[0]: 101, devices[1]: 200}
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda index: 300 + index)
    monkeypatch.setattr(torch.xpu, "max_memory_reserved", lambda index: 400 + index)
    assert measure.device_reserved(devices) == {devices[0]: 301, devices[1]: 400}


# repeats


def test_repeats_and_warm_ups(loaded):
    llama = loaded("llama")
    runs = []
    llama.model.register_forward_pre_hook(lambda *_: runs.append(1))
    ran = llama.run(repeat=3, warmup=2, new_tokens=2)
    assert len(runs) == 5 + 2 * (2 + 3)
    for spread in (ran.forward_seconds, ran.generated.seconds, ran.generated.first_token_seconds):
        assert spread.runs == 3
        assert 0 < spread.least <= spread.median <= spread.most
    runs.clear()
    llama.run(warmup=0)
    assert len(runs) == 2  # the second is not timed, and is there to be compared
    runs.clear()
    llama.run()
    assert len(runs) == 2
    one = llama.run(new_tokens=1).generated
    assert one.first_token_seconds is not None
    assert one.decode_tokens_per_second is None
