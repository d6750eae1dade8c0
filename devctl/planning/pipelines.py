"""A pipeline of diffusers on a machine: what each component holds, and in which ways all of them fit by weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from devctl.errors import ModelError, UsageError
from devctl.models.files.kinds import PipelineFoundError
from devctl.models.pipelines import (
    Component,
    Files,
    InFolder,
    Kind,
    Pipeline,
    Weighed,
    find_pipeline,
    has_weights,
    offload_order,
    variant_of,
    weigh,
)
from devctl.placement.components import Fit, ways
from devctl.planning.machine import Machine
from devctl.planning.model import open_model
from devctl.planning.progress import reporter
from devctl.planning.request import Dtype, ModelRequest
from devctl.planning.unpacked import as_held, told_unpacked
from devctl.units import format_bytes

SCHEMA, KIND = 1, "devctl.pipeline"

NOT_COUNTED = (
    "weights alone are counted: what is computed, above all by the denoiser at the size of its images, takes more, so "
    "that weights which fit do not mean that it runs"
)
_IN_FLOAT32 = (
    "diffusers makes its own models in float32 unless it is told torch_dtype: --dtype bfloat16 counts them as with that"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelinePlan:
    """What a pipeline holds, and where it fits.

    Attributes:
        components: those with weights, and those without, in the order of the index.
        fits: each way to run it; none where the bytes of a component are not known.
        notes: what a reader should know.
    """

    pipeline: Pipeline
    dtype: str
    components: tuple[Weighed, ...]
    fits: tuple[Fit, ...]
    notes: tuple[str, ...]

    @property
    def nbytes(self) -> int | None:
        """Bytes of all components; None where one is not known."""
        sizes = [each.nbytes for each in self.components]
        return None if None in sizes else sum(size for size in sizes if size is not None)

    def to_document(self) -> dict[str, Any]:
        """The answer as JSON values. Sizes are bytes."""
        return {
            "schema": SCHEMA,
            "kind": KIND,
            "pipeline": {"name": self.pipeline.name, "class": self.pipeline.class_name, "bytes": self.nbytes},
            "dtype": self.dtype,
            "components": [
                {
                    "name": each.component.name,
                    "library": each.component.library,
                    "class": each.component.class_name,
                    "bytes": each.nbytes,
                    "dtypes": list(each.dtypes),
                    "counted_by": each.component.kind,
                    "variant": each.variant,
                }
                for each in self.components
            ],
            "weights_fit": [
                {
                    "way": fit.way,
                    "fits": fit.fits,
                    "why": fit.why or None,
                    "left": fit.left,
                    "devices": {name: str(device) for name, device in fit.devices.items()},
                }
                for fit in self.fits
            ],
            "notes": list(self.notes),
        }


def plan_pipeline(request: ModelRequest, found: PipelineFoundError, machine: Machine) -> PipelinePlan:
    """The components of the pipeline that ``request`` names, and where they fit on ``machine``.

    Raises:
        ModelError: it can't be read.
    """
    with reporter().status(f"reading the components of {found.given}"):
        pipeline, files = find_pipeline(found.given, on_hub=found.on_hub, revision=request.revision)
    components = tuple(_weighed(each, files, request, machine) for each in pipeline.components)
    sizes = {each.component.name: each.nbytes for each in components if each.nbytes}
    known = all(each.nbytes is not None for each in components)
    variants = {each.variant for each in components if each.nbytes} - {None}
    notes = [NOT_COUNTED, *_told_lacking(pipeline), *(note for each in components for note in each.notes)]
    if request.dtype == Dtype.AUTO and any(_is_own(each) for each in components):
        notes.append(_IN_FLOAT32)
    notes += [f'of some components there are files of variant="{name}" alone: it has to be given' for name in variants]
    if trees := [each.component.name for each in components if each.component.kind is Kind.TREE and each.nbytes]:
        notes.append(f"`devctl plan {found.given}/{trees[0]}` plans {trees[0]} by itself, as any model")
    order = offload_order(pipeline.class_name)
    if known and not sizes:
        raise ModelError(f"{found.given} has no component with weights")
    return PipelinePlan(
        pipeline=pipeline,
        dtype=str(request.dtype),
        components=components,
        fits=ways({name: size for name, size in sizes.items() if size}, machine.budgets, order) if known else (),
        notes=(*machine.missing, *machine.budgets.notes, *notes),
    )


def _told_lacking(pipeline: Pipeline) -> tuple[str, ...]:
    """What is not counted, as the index does not name it."""
    if not pipeline.lacking:
        return ()
    named = ", ".join(pipeline.lacking)
    return (f"not counted: {named}, which {pipeline.class_name} needs and its index does not name: is it whole?",)


def require_known(plan: PipelinePlan) -> None:
    """Refuse a plan of which a component's bytes are not known.

    Raises:
        ModelError: naming those, and how the others can be planned.
    """
    unknown = [each for each in plan.components if each.nbytes is None]
    if not unknown:
        return
    trees = [each.component.name for each in plan.components if each.component.kind is Kind.TREE and each.nbytes]
    each_one = f"`devctl plan {plan.pipeline.name}/{trees[0]}` plans {trees[0]} by itself" if trees else ""
    raise ModelError(
        f"{plan.pipeline.name} is a pipeline of diffusers, of which not all is known: {told(unknown[0])}"
        + (f", and {len(unknown) - 1} more" if len(unknown) > 1 else ""),
        hint=each_one,
        findings=tuple(told(each) for each in plan.components if each.component.kind is not Kind.NOTHING),
    )


def told(weighed: Weighed) -> str:
    """A component in a line."""
    if weighed.nbytes is None:
        return f"{weighed.component.name} ({weighed.component.class_name}): {weighed.why}"
    size = f"{format_bytes(weighed.nbytes)} in {', '.join(weighed.dtypes)}" if weighed.nbytes else "no weights"
    return f"{weighed.component.name} ({weighed.component.class_name}): {size}"


def _is_own(weighed: Weighed) -> bool:
    return bool(weighed.nbytes) and weighed.component.library == "diffusers"


def _weighed(component: Component, files: Files, request: ModelRequest, machine: Machine) -> Weighed:
    """What a component holds on ``machine``; why that is not known, where it is not."""
    try:
        if component.kind is Kind.NOTHING:
            return Weighed(component=component, nbytes=0)
        if component.kind is Kind.HEADERS:
            return weigh(component, files, str(request.dtype))
        return _of_tree(component, files, request, machine)
    except (ModelError, UsageError) as error:
        return Weighed(component=component, nbytes=None, why=error.message)


def _without_weights(component: Component, files: Files) -> tuple[str, ...]:
    """That a component's weights are not in its folder, where that is known."""
    if not isinstance(files, InFolder) or has_weights(component, files):
        return ()
    return (f"{component.name}: its weights are not there: counted by its config",)


def _of_tree(component: Component, files: Files, request: ModelRequest, machine: Machine) -> Weighed:
    config = files.path(f"{component.name}/config.json")
    if config is None:
        return Weighed(component=component, nbytes=None, why="its config.json is not there")
    # of what a cache holds of a hub's files, the config alone is sure to be there
    model = open_model(
        replace(
            request,
            model=str(config.parent if isinstance(files, InFolder) else config),
            model_class=component.class_name,
            revision=None,
            adapters=(),
        )
    )
    model = as_held(model, machine)
    return Weighed(
        component=component,
        nbytes=model.tree.index.held[""],
        dtypes=(model.tree.quantisation or model.tree.dtype,),
        variant=variant_of(component, files),
        notes=(
            *_without_weights(component, files),
            *model.tree.notes,
            *(f"{component.name}: {note}" for note in told_unpacked(model.tree)),
        ),
    )
