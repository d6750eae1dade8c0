"""Models in GGUF files, opened; how they are planned is in ``gguf_plan``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from devctl.errors import UntracedError, UsageError
from devctl.export.llama_cpp import fitting
from devctl.models.gguf.files import GgufModel, read_gguf
from devctl.models.gguf.hub import read_on_hub
from devctl.models.gguf.layout import Layout, layout_of
from devctl.models.gguf.state import States, states_of
from devctl.placement.document import PlannedModel
from devctl.planning.clashes import WHAT_WORKS


@dataclass(frozen=True, kw_only=True)  # without slots, as what is read once is kept
class OpenedGguf:
    """A model in GGUF files, whose headers were read.

    Attributes:
        layout: its parts.
    """

    files: GgufModel
    layout: Layout

    @property
    def made_for(self) -> int | None:
        """Tokens that it is made for; None where its header does not say."""
        found = self.files.key("context_length")
        return found if type(found) is int and found > 1 else None

    def fitting(self, tokens: int | None = None, kv_dtype: str | None = None) -> str:
        """The line that lets llama.cpp fit it by itself, for so many tokens of all sequences together."""
        return fitting(self.files.name, tokens, kv_dtype, on_hub=self.files.revision is not None)

    @property
    def planned(self) -> PlannedModel:
        """What a plan document says of it: its name is the file that llama.cpp is given."""
        tree = self.layout.tree
        return PlannedModel(
            name=self.files.name,
            revision=self.files.revision,
            class_name=tree.class_name,
            dtype=tree.dtype,
            nbytes=self.files.nbytes,
            quantisation=tree.quantisation,
        )

    @cached_property
    def states(self) -> States:
        """What its layers keep between steps.

        Raises:
            UntracedError: that is not known.
        """
        found = states_of(self.files, len(self.layout.layers))
        if isinstance(found, str):
            raise UntracedError(
                f"the KV cache of {self.files.name} can't be counted: {found}",
                hint="leave out --context-length and --max-context for the weights alone; "
                f"`{self.fitting()}` knows its own",
            )
        return found


def open_gguf(path: Path) -> OpenedGguf:
    """The model in the GGUF file, or in the folder of such files, at ``path``.

    Raises:
        ModelError: it can't be read, or is none that llama.cpp could place.
        UsageError: there are several models in the folder.
    """
    return _opened(read_gguf(path))


def open_gguf_on_hub(model: str, revision: str | None) -> OpenedGguf | None:
    """The model in GGUF files that the hub's ``model`` has: "org/name", or "org/name:Q4_K_M" for one of several.

    Raises:
        ModelError: there is no such repository, the hub can't be reached, or a file is none that llama.cpp could place.
        UsageError: there are several models, or none of that name.

    Returns:
        That, or None where the repository has no GGUF file.
    """
    files = read_on_hub(model, revision)
    return None if files is None else _opened(files)


def _opened(files: GgufModel) -> OpenedGguf:
    return OpenedGguf(files=files, layout=layout_of(files))


def refuse_gguf(opened: OpenedGguf | None, what: str) -> None:
    """Refuse an answer that is about transformers, where the model is in a GGUF file.

    Args:
        what: is answered, like "--compare".

    Raises:
        UsageError: it is.
    """
    if opened is not None:
        raise UsageError(f"{what}: {opened.files.name} is a GGUF file, which is planned for llama.cpp", hint=WHAT_WORKS)
