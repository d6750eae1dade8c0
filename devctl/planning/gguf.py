"""Models in GGUF files, opened; how they are planned is in ``gguf_plan``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from devctl.errors import UntracedError, UsageError
from devctl.export.llama_cpp import fitting
from devctl.models.gguf.files import GgufModel, read_gguf
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

    @property
    def planned(self) -> PlannedModel:
        """What a plan document says of it: its name is the file that llama.cpp is given."""
        tree = self.layout.tree
        return PlannedModel(
            name=str(self.files.path),
            revision=None,
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
                f"the KV cache of {self.files.path} can't be counted: {found}",
                hint="leave out --context-length and --max-context for the weights alone; "
                f"`{fitting(str(self.files.path))}` knows its own",
            )
        return found


def open_gguf(path: Path) -> OpenedGguf:
    """The model in the GGUF file, or in the folder of such files, at ``path``.

    Raises:
        ModelError: it can't be read, or is none that llama.cpp could place.
        UsageError: there are several models in the folder.
    """
    files = read_gguf(path)
    return OpenedGguf(files=files, layout=layout_of(files))


def refuse_gguf(opened: OpenedGguf | None, what: str) -> None:
    """Refuse an answer that is about transformers, where the model is in a GGUF file.

    Args:
        what: is answered, like "--compare".

    Raises:
        UsageError: it is.
    """
    if opened is not None:
        raise UsageError(f"{what}: {opened.files.path} is a GGUF file, which is planned for llama.cpp", hint=WHAT_WORKS)
