"""The model that a request means: where it is read from, its module tree, and what it holds beside its weights."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from devctl.errors import DevctlError, ModelError, UsageError
from devctl.models.adapted import adapted, find_beside
from devctl.models.adapters import Adapter, read_adapter
from devctl.models.cache import load_tree, store_tree, tree_key, unusable
from devctl.models.files.hub import NoSuchFileError
from devctl.models.files.resolve import ModelSource, generation_of
from devctl.models.gguf.files import gguf_at
from devctl.models.gguf.hub import names_one_of_several
from devctl.models.quantised.quantise import Quantize
from devctl.models.tree import ModuleTree
from devctl.placement import Installed
from devctl.placement.document import PlannedAdapter, PlannedModel
from devctl.planning.building import BUILDING, experts_per_token, find_planned, find_source, made_for, read
from devctl.planning.footprints import Footprints
from devctl.planning.gguf import OpenedGguf, open_gguf, open_gguf_on_hub
from devctl.planning.installed import planner_for
from devctl.planning.progress import reporter
from devctl.planning.request import Dtype, ModelRequest

if TYPE_CHECKING:
    from devctl.models.skeleton import Skeleton


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model without weights.

    Attributes:
        request: what was asked for.
        source: where it is read from; None for a live module, and for a GGUF file.
        tree: its modules.
        made_for: tokens that it is made for; None where its config does not say.
        footprints: what it holds beside its weights, by workload: traced as it is asked for.
        key: under which its tree is kept; None where it is not.
        installed: the planner of the transformers that is installed, to be held against; None of a live module.
        experts_per_token: experts of a layer that a token is sent to; None where its config does not say.
        has_encoder: whether an encoder runs before it decodes.
        gguf: what its headers say, where it is in a GGUF file; None of a model that transformers builds.
        adapters: what PEFT loads beside it, which ``tree`` has among its bytes.
    """

    request: ModelRequest
    source: ModelSource | None
    tree: ModuleTree
    made_for: int | None
    footprints: Footprints
    key: str | None = None
    installed: Installed | None = None
    experts_per_token: int | None = None
    has_encoder: bool = False
    gguf: OpenedGguf | None = None
    adapters: tuple[Adapter, ...] = ()

    @property
    def generation(self) -> Mapping[str, Any]:
        """What its files say of generate; of a live module, what it holds.

        Raises:
            ModelError: the hub can't be reached.
        """
        if self.source is not None:
            return generation_of(self.source)
        settings = getattr(self.request.model, "generation_config", None)
        return {} if settings is None else dict(settings.to_dict())

    @property
    def planned(self) -> PlannedModel:
        """What a plan document says of it."""
        if self.gguf is not None:
            return self.gguf.planned
        return PlannedModel(
            name=self.request.model if isinstance(self.request.model, str) else self.tree.class_name,
            revision=self.source.revision if self.source is not None else None,
            class_name=self.tree.class_name,
            dtype=self.tree.dtype,
            nbytes=self.tree.index.held[""],
            quantisation=self.tree.quantisation,
            adapters=tuple(
                PlannedAdapter(name=each.name, revision=each.revision, nbytes=find_beside(self.tree, each).total)
                for each in self.adapters
            ),
        )

    @property
    def may_be_quantised(self) -> bool:
        """Whether it is built anew, and not quantised already, so that ``--quantize`` may be advised."""
        return not self.request.is_live and self.tree.quantisation is None and self.tree.packed_as is None

    def smaller(self) -> Iterator[tuple[str, ModuleTree]]:
        """The model in fewer bytes and the option that makes it so, the least change first; built when asked for."""
        if self.request.is_live:
            return
        ways = []
        if self.tree.dtype in {"float32", "float64"}:
            ways.append(("--dtype bfloat16", replace(self.request, dtype="bfloat16")))
        if self.may_be_quantised:
            ways += [(f"--quantize {m}", replace(self.request, quantize=m)) for m in (Quantize.INT8, Quantize.NF4)]
        for option, changed in ways:
            with contextlib.suppress(DevctlError):  # a way that there is not for this model
                other = open_model(changed)
                yield option, (other if self.tree.packed_as is None else other.unpacked()).tree

    def require_alone(self, because: str) -> None:
        """Refuse adapters, which a model in an adapter's place has without an option.

        Raises:
            UsageError: there is one.
        """
        if self.adapters:
            raise UsageError(f"{because}: {self.adapters[0].name} is one", hint="give its base alone")

    def unpacked(self) -> Model:
        """The same as transformers unpacks it, where it lacks the hardware that its packed weights need.

        What it computes is the same, and so is what it holds beside its weights.

        Raises:
            ModelError: it can't be read any more.
        """
        if self.source is None or self.tree.unpacked is None:
            return self
        from devctl.models.skeleton import Purpose

        key = _key(self.source, self.request, unpacked=True) if self.request.cache else None
        build = partial(read, self.source, self.request, Purpose.UNPACKED)
        tree, skeleton = _tree(key, build)
        installed = planner_for(key, tree, skeleton, build)
        return replace(self, tree=adapted(tree, *self.adapters), key=key, installed=installed)


@functools.cache
def _tell_of_cache(why_not: str | None) -> None:
    """Say once why nothing is kept."""
    if why_not is not None:
        reporter().warn(why_not)


def open_model(request: ModelRequest) -> Model:
    """The model of ``request``; one whose tree was kept needs no torch.

    Raises:
        ModelError: it can't be read, or an adapter does not fit it.
        UsageError: it is not what the request says: no such class, or quantised already.
    """
    if request.is_live:
        return _open_live(request)
    if (opened := _gguf_of(request)) is not None:
        return _of_gguf(request, opened)
    missing = None
    try:
        request, source = find_planned(request)
    except NoSuchFileError as error:  # of a config, which a repository of GGUF files has none of
        missing = error
    if missing is not None:
        if (opened := _gguf_on_hub(request)) is None:
            raise missing
        return _of_gguf(request, opened)
    adapters = tuple(read_adapter(name) for name in request.adapters)
    key = _key(source, request) if request.cache else None
    if key is not None:
        _tell_of_cache(unusable())
    build = partial(_build, source, request)
    tree, skeleton = _tree(key, build)
    plain = skeleton if tree.quantisation is None else None
    footprints = Footprints(request, source, plain, adapters, built=skeleton is not None)
    return Model(
        request=request,
        source=source,
        tree=adapted(tree, *adapters),
        made_for=made_for(source.config),
        footprints=footprints,
        key=key,
        installed=planner_for(key, tree, skeleton, build),
        experts_per_token=experts_per_token(source.config),
        has_encoder=source.config.get("is_encoder_decoder") is True,
        adapters=adapters,
    )


def _tree(key: str | None, build: Callable[[], Skeleton]) -> tuple[ModuleTree, Skeleton | None]:
    """The tree that is kept under ``key``, else that of what ``build`` builds, and then that."""
    if key is not None and (kept := load_tree(key)) is not None:
        return kept, None
    skeleton = build()
    if key is not None:
        store_tree(key, skeleton.tree)
    return skeleton.tree, skeleton


def open_skeleton(request: ModelRequest, *, random_weights: bool) -> tuple[ModelSource, Skeleton]:
    """The model as it is loaded here, and where it is read from.

    Raises:
        ModelError, UsageError: as `open_model`.
    """
    source = find_source(request)
    from devctl.models.skeleton import Purpose

    return source, read(source, request, Purpose.RANDOM if random_weights else Purpose.LOAD)


def _build(source: ModelSource, request: ModelRequest) -> Skeleton:
    from devctl.models.skeleton import Purpose

    return read(source, request, Purpose.PLAN)


def _key(source: ModelSource, request: ModelRequest, *, unpacked: bool = False) -> str | None:
    return tree_key(
        source,
        dtype=request.dtype,
        model_class=request.model_class,
        trust_remote_code=request.trust_remote_code,
        quantize=request.quantize,
        unpacked=unpacked,
    )


def _gguf_of(request: ModelRequest) -> OpenedGguf | None:
    """What is in a GGUF file by what MODEL is, or by how it is written: org/name:Q4_K_M."""
    model = str(request.model)
    if (path := gguf_at(model)) is not None:
        return open_gguf(path)
    if not names_one_of_several(model) or Path(model).exists():
        return None
    opened = _gguf_on_hub(request)
    if opened is None:
        raise ModelError(f"{model.partition(':')[0]} has no GGUF file", hint="leave out what is behind the colon")
    return opened


def _gguf_on_hub(request: ModelRequest) -> OpenedGguf | None:
    with reporter().status(f"reading headers of {request.model}"):
        return open_gguf_on_hub(str(request.model), request.revision)


def _of_gguf(request: ModelRequest, opened: OpenedGguf) -> Model:
    changed = {
        "--dtype": request.dtype != Dtype.AUTO,
        "--model-class": request.model_class is not None,
        "--trust-remote-code": request.trust_remote_code,
        "--revision": request.revision is not None and opened.files.revision is None,
        "--quantize": request.quantize is not None,
        "--adapter": bool(request.adapters),
    }
    if wrong := [option for option, is_given in changed.items() if is_given]:
        raise UsageError(f"{wrong[0]}: {opened.files.name} is a GGUF file, which is as it is", hint="leave it out")
    return Model(
        request=request,
        source=None,
        tree=opened.layout.tree,
        made_for=opened.made_for,
        footprints=Footprints(request, None),
        gguf=opened,
    )


def _open_live(request: ModelRequest) -> Model:
    from devctl.models.skeleton import live_skeleton, live_tree

    assert not isinstance(request.model, str), "asked of live modules alone"
    with BUILDING:
        tree = live_tree(request.model)
        skeleton = live_skeleton(request.model, tree)
    config = {} if skeleton is None else skeleton.config.to_dict()
    return Model(
        request=request,
        source=None,
        tree=tree,
        made_for=made_for(config),
        footprints=Footprints(request, None, skeleton),
        experts_per_token=experts_per_token(config),
        has_encoder=config.get("is_encoder_decoder") is True,
    )
