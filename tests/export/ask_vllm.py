"""Let vLLM's own parser read command lines: ``python -m tests.export.ask_vllm FOLDER``, the lines as JSON on stdin.

FOLDER has vLLM's package and what it imports that is light. What else it imports at its top, a GPU's kernels and
grammars among it, is stood in for by modules of empty classes: none of that is used by the time that options are read.
On stdout is a list: of each line, what was not understood.
"""

import importlib
import importlib.abc
import importlib.machinery
import importlib.metadata
import json
import sys
import types

VERSION = importlib.metadata.version
STOOD_IN = {
    "xgrammar", "outlines_core", "lark", "partial_json_parser", "llguidance", "mistral_common", "compressed_tensors",
    "depyf", "blake3", "diskcache", "lm_format_enforcer", "prometheus_fastapi_instrumentator", "fastapi", "uvicorn",
    "watchfiles", "setproctitle", "cv2", "numba", "ray", "tiktoken", "ijson", "anthropic", "mcp", "flashinfer",
    "model_hosting_container_standards", "starlette",
}  # fmt: skip
KERNELS = {"vllm._C", "vllm._moe_C", "vllm._C_stable_libtorch", "vllm._rocm_C"}


def _as_anything(*_args, **_kwargs):
    return importlib.import_module("pydantic_core").core_schema.any_schema()


class _Empty(types.ModuleType):
    """Has a class of every name."""

    def __init__(self, name):
        super().__init__(name)
        self.__path__ = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        made = type(
            name,
            (),
            {
                "__class_getitem__": classmethod(lambda cls, _: cls),
                "__init__": lambda self, *args, **kwargs: None,
                "__get_pydantic_core_schema__": classmethod(_as_anything),
            },
        )
        setattr(self, name, made)
        return made


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, fullname, path=None, target=None):
        if fullname.partition(".")[0] in STOOD_IN or fullname in KERNELS:
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec):
        return _Empty(spec.name)

    def exec_module(self, module):
        pass


def main(folder):
    """Print what the parser of vLLM in ``folder`` does not understand of each line."""
    sys.path.insert(0, folder)
    sys.meta_path.insert(0, _Finder())
    # its platform is told by its version: this is how it runs where there is no GPU
    importlib.metadata.version = lambda name: VERSION(name) + ("+cpu" if name == "vllm" else "")
    arguments = importlib.import_module("vllm.engine.arg_utils")
    parsers = importlib.import_module("vllm.utils.argparse_utils")

    parser = arguments.EngineArgs.add_cli_args(parsers.FlexibleArgumentParser())
    found = [parser.parse_known_args(words)[1] for words in json.load(sys.stdin)]
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
