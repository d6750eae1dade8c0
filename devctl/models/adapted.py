"""A model's tree with adapters beside its modules, as PEFT loads them: pure, from the headers of their files."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace

from devctl.errors import ModelError
from devctl.models.adapters import Adapter, elements
from devctl.models.files.safetensors import StoredTensor
from devctl.models.tree import Module, ModuleTree, Tensor, held_bytes
from devctl.units import format_bytes

_ADDED = re.compile(r"(?P<module>.+)\.(?P<part>lora_\w+)(?P<rest>(?:\.\w+)?)")
_TOKENS = ".token_adapter.trainable_tokens_delta"
_BASE = ".base_layer"
_WRAPPED = re.compile(r"\.(?:modules_to_save|original_module)\b")
"""What PEFT puts into the names of a copy's biases, and of its original's, where all biases were trained."""

_PARTS = frozenset(
    {
        "lora_A.weight",
        "lora_B.weight",
        "lora_B.bias",
        "lora_embedding_A",
        "lora_embedding_B",
        "lora_magnitude_vector",
        "lora_magnitude_vector.weight",
    }
)
"""What LoRA's layers keep in a file; what else there is, another method's or a newer PEFT's, is not counted."""

_AUTO_CLASSES = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoModel",
}
"""The class that PEFT's own AutoPeftModel loads for a task (``peft/auto.py``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """What an adapter has beside a model's modules.

    Attributes:
        modules: what LoRA adds to each module or, where it is beside parameters, to the module that they are in: by the
            names of the file, with one ``.base_layer`` for each further parameter.
        tokens: rows of the embeddings that it replaces, by module.
        nbytes: bytes by the tensor of the model that they are beside.
    """

    modules: Mapping[str, Mapping[str, StoredTensor]]
    tokens: Mapping[str, StoredTensor]
    nbytes: Mapping[str, int]

    @property
    def total(self) -> int:
        """Bytes in all."""
        return sum(self.nbytes.values())


def adapted(tree: ModuleTree, *adapters: Adapter) -> ModuleTree:
    """``tree`` with what ``adapters`` hold beside its tensors.

    The map that transformers makes stays what it is, since PEFT comes after it; what devices hold does not.

    Raises:
        ModelError: one does not fit the model.
    """
    more: dict[str, int] = {}
    notes = []
    for adapter in adapters:
        beside = find_beside(tree, adapter)
        for name, nbytes in beside.nbytes.items():
            more[name] = more.get(name, 0) + nbytes
        notes.append(f"with the adapter {adapter.name}: {format_bytes(beside.total)}, as PEFT loads it")
    if not adapters:
        return tree
    if tree.quantisation is not None:
        notes.append("what an adapter computes beside quantised weights is counted as beside plain ones")
    return replace(tree, root=_with_more(tree.root, more), notes=(*tree.notes, *notes))


def _with_more(module: Module, more: Mapping[str, int]) -> Module:
    def each(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(replace(t, beside=t.beside + more[t.name]) if t.name in more else t for t in tensors)

    return replace(
        module,
        parameters=each(module.parameters),
        buffers=each(module.buffers),
        children=tuple(_with_more(child, more) for child in module.children),
    )


def find_beside(tree: ModuleTree, adapter: Adapter) -> Beside:
    """What ``adapter`` has beside the modules of ``tree``, and in how many bytes PEFT loads it.

    The layers of a LoRA are float32, whatever the file and the model have, but for a model in float64
    (``cast_adapter_dtype``); rows of embeddings are there twice, to be put back; whole copies are as the module is,
    which stays there too (``ModulesToSaveWrapper``). A bias that is trained takes the place of the model's own.

    Raises:
        ModelError: it does not fit the model.
    """
    found = _Finding(tree, adapter)
    for name, tensor in adapter.tensors.items():
        found.take(name, tensor)
    found.check()
    return Beside(modules=found.modules, tokens=found.tokens, nbytes=found.nbytes)


@dataclass(slots=True)
class _Finding:
    """One walk over an adapter's tensors."""

    tree: ModuleTree
    adapter: Adapter
    modules: dict[str, dict[str, StoredTensor]] = field(default_factory=dict)
    tokens: dict[str, StoredTensor] = field(default_factory=dict)
    nbytes: dict[str, int] = field(default_factory=dict)
    copies: frozenset[str] = frozenset()
    known: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.known = {tensor.name: tensor for tensor in self.tree.index.tensors}
        self.copies = frozenset(self._copied())

    def misfit(self, why: str) -> ModelError:
        name = self.adapter.task or ""
        other = _AUTO_CLASSES.get(name)
        hint = f"it was made for {name}: with --model-class {other}?" if other else ""
        of = f", which is for {self.adapter.base}" if self.adapter.base else ""
        return ModelError(f"the adapter {self.adapter.name}{of} does not fit {self.tree.class_name}: {why}", hint=hint)

    def _copied(self) -> Iterator[str]:
        """Modules of which the adapter has a copy, each once; of tied ones one is enough where copies are tied."""
        ends = self.adapter.copied
        index = self.tree.index
        matched = {name for name in index.modules if name and name.endswith(ends)} if ends else set()
        targets = {target for target, _ in self.tree.ties}
        for name in index.modules:
            if name not in matched or _is_within(name.rpartition(".")[0], matched):
                continue
            tensors = index.tensors_of(name)
            is_tied = self.adapter.shares_ties and all(tensor.name in targets for tensor in tensors)
            sources = {source.rpartition(".")[0] for target, source in self.tree.ties if target.startswith(f"{name}.")}
            if tensors and is_tied and sources & matched:
                continue
            yield name

    def take(self, name: str, tensor: StoredTensor) -> None:
        """Count one tensor of the file."""
        if name.endswith(_TOKENS):
            module = self._module(name.removesuffix(_TOKENS))
            table = next((t.shape for t in module.parameters if len(t.shape) == 2), (0, 0))
            if len(tensor.shape) != 2 or tensor.shape[0] > table[0] or tensor.shape[1] != table[1]:
                raise self.misfit(f"{module.name[:120]} is {_size(table)} there, its rows {_size(tensor.shape)}")
            self.tokens[module.name] = tensor
            self._add(module, 2 * elements(tensor) * self._itemsize(module))
        elif (added := _ADDED.fullmatch(name)) is not None:
            part = added["part"] + added["rest"]
            if part not in _PARTS:
                raise ModelError(f"{self.adapter.name} has a {part[:60]}, which is not counted")
            whole = added["module"]
            module = self._module(whole.replace(_BASE, ""))
            self.modules.setdefault(whole, {})[part] = tensor
            self._add(module, elements(tensor) * self._itemsize(module))
        else:
            self._replaces(name, tensor)

    def _module(self, name: str) -> Module:
        module = self.tree.index.modules.get(name)
        if module is None:
            raise self.misfit(f"it has no {name[:120]}")
        return module

    def _add(self, module: Module, nbytes: int) -> None:
        own = (*module.parameters, *module.buffers)
        # of quantised weights, what is held may be named by no tensor in the module itself
        inside = own or self.tree.index.tensors_of(module.name)
        if not inside:
            raise self.misfit(f"{module.name} has no weight")
        self.nbytes[inside[0].name] = self.nbytes.get(inside[0].name, 0) + nbytes

    def _itemsize(self, module: Module) -> int:
        return 8 if any(tensor.dtype == "float64" for tensor in module.parameters) else 4

    def _replaces(self, name: str, tensor: StoredTensor) -> None:
        """A tensor of the model itself, in the file: of a copy, or in place of the model's own."""
        own = self.known.get(_WRAPPED.sub("", name.replace(_BASE, "")))
        if own is None:
            raise self.misfit(f"it has no {name[:120]}")
        if self.tree.quantisation is None and own.shape != tensor.shape:
            raise self.misfit(f"{name[:120]} is {_size(own.shape)} there, and {_size(tensor.shape)} in the adapter")

    def check(self) -> None:
        """Hold what was found against what the adapter's config says, and the model's shapes."""
        for name, parts in self.modules.items():
            self._check_module(name, parts)
        self._check_targets()
        for name in self.copies:
            for tensor in self.tree.index.tensors_of(name):
                if tensor.persistent and tensor.name not in self.adapter.tensors:
                    raise self.misfit(f"its {tensor.name[:120]} is to be a copy, and the adapter's file has none")
                self.nbytes[tensor.name] = self.nbytes.get(tensor.name, 0) + held_bytes(tensor) - tensor.beside
        for end in self.adapter.copied:
            # PEFT names several for a head, of which a model has one
            if not any(name.endswith(end) for name in self.copies) and end not in ("classifier", "score", "qa_outputs"):
                raise self.misfit(f"it has no module {end[:60]}, of which the adapter has a copy")

    def _check_module(self, name: str, parts: Mapping[str, StoredTensor]) -> None:
        module = self._module(name.replace(_BASE, ""))
        pair = ("lora_embedding_A", "lora_embedding_B") if "lora_embedding_A" in parts else _PAIR
        for part in pair:
            if part not in parts or len(parts[part].shape) < 2 or not elements(parts[part]):
                raise self.misfit(f"beside {name[:120]} its file has no {part}")
        first, second = (parts[part].shape for part in pair)
        if first[0] != second[1]:
            raise self.misfit(f"beside {name[:120]} its file has ranks {first[0]} and {second[1]}")
        for part in ("lora_B.bias", "lora_magnitude_vector", "lora_magnitude_vector.weight"):
            if part in parts and elements(parts[part]) != second[0]:
                raise self.misfit(f"beside {name[:120]} its file has a {part} of {_size(parts[part].shape)}")
        is_bare = self.adapter.dora and not any(part.startswith("lora_magnitude_vector") for part in parts)
        if is_bare or (self.adapter.bias and pair is _PAIR and "lora_B.bias" not in parts):
            raise self.misfit(
                f"beside {name[:120]} its file has no {'magnitude' if is_bare else 'bias'}, as its config says"
            )
        ranks = {self.adapter.rank, *self.adapter.ranks}
        weights = [t for t in module.parameters if len(t.shape) > 1]
        experts = {t.shape[0] for t in weights if len(t.shape) == 3} if self.adapter.parameters else set()
        if first[0] not in ranks and not any(first[0] == rank * each for rank in ranks for each in experts):
            raise self.misfit(
                f"beside {name[:120]} its file has rank {first[0]}, its config {' or '.join(map(str, sorted(ranks)))}"
            )
        if self.tree.quantisation is None and weights:
            ends = {first[1], second[0]}
            if not any(ends == set(_ends(weight.shape)) or ends == set(_ends(weight.shape[1:])) for weight in weights):
                there = " or ".join(_size(weight.shape) for weight in weights)
                raise self.misfit(
                    f"{name[:120]} is {there} there, and the adapter is for {_size((second[0], first[1]))}"
                )

    def _check_targets(self) -> None:
        """Modules that PEFT makes a layer for by the config's names, and which are not in the file, are too much."""
        adapter = self.adapter
        if not adapter.targets or adapter.layers_given or adapter.excluded is None:
            return
        there = {name.replace(_BASE, "") for name in self.modules}
        targets, excluded = frozenset(adapter.targets), frozenset(adapter.excluded)
        for name, module in self.tree.index.modules.items():
            if name in there or module.children or not _is_named(name, targets):
                continue
            if _is_named(name, excluded) or _is_within(name, self.copies):
                continue
            raise self.misfit(f"its config names {name[:120]}, and its file has nothing for it")


_PAIR = ("lora_A.weight", "lora_B.weight")


def _is_named(name: str, ends: frozenset[str]) -> bool:
    """Whether a module goes by one of ``ends``: its name, or last parts of it."""
    parts = name.split(".")
    return any(".".join(parts[at:]) in ends for at in range(len(parts)))


def _is_within(name: str, modules: Collection[str]) -> bool:
    """Whether ``name`` is, or is in, one of ``modules``."""
    while name:
        if name in modules:
            return True
        name = name.rpartition(".")[0]
    return False


def _ends(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The two dimensions of a weight that inputs and outputs have."""
    return shape[:2]


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))[:60]
