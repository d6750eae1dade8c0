"""Whether the attention that a load is asked for runs here, and whether it is what runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from devctl.errors import LoadError, ModelError
from devctl.models import attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def require_package(name: str | None) -> None:
    """Refuse flash attention whose package is not installed.

    Raises:
        ModelError: naming the package.
    """
    if name is None or not attention.is_flash(name):
        return
    from transformers import modeling_flash_attention_utils as flash
    from transformers.utils.import_utils import is_kernels_available

    if is_kernels_available():  # transformers fetches the hub's kernel then
        return
    hint = "install it, or give another with --attn-implementation"
    if attention.is_kernel(name):
        raise ModelError(f"{name} needs the package kernels, which is not installed", hint=hint)
    version = name.rpartition("_")[2]
    package = "flash-attn" if version == "2" else f"flash-attn-{version}"
    available = getattr(flash, f"is_flash_attn_{version}_available", None)
    if available is None or not available():
        raise ModelError(f"{name} needs the package {package} or kernels, and neither works here", hint=hint)


def require_used(model: PreTrainedModel, planned: str | None) -> str | None:
    """How the loaded model attends, which has to be as ``planned`` where that is known.

    Raises:
        LoadError: it is another.
    """
    used = attention.of_config(model.config)
    if planned is not None and used is not None and not attention.same(planned, used):
        raise LoadError(
            f"the model was loaded with {used} attention, and {planned} is planned",
            hint=f"plan with --attn-implementation {used}",
        )
    return used
