"""The architectures that engines register, read from their wheels: ``python -m tests.export.registries WHEEL WHEEL``.

Writes ``devctl/export/architectures.json`` from the wheels of vLLM and SGLang.
"""

import ast
import json
import sys
import zipfile
from pathlib import Path

from devctl.export import known, sglang, vllm

FILE = Path(known.__file__).with_name("architectures.json")
_VLLM = "vllm/model_executor/models/registry.py"
_SERVED = (
    "_TEXT_GENERATION_MODELS",
    "_EMBEDDING_MODELS",
    "_LATE_INTERACTION_MODELS",
    "_REWARD_MODELS",
    "_TOKEN_CLASSIFICATION_MODELS",
    "_SEQUENCE_CLASSIFICATION_MODELS",
    "_MULTIMODAL_MODELS",
    "_TRANSFORMERS_SUPPORTED_MODELS",
)
"""Its tables of models that are served by themselves: not those that draft for others, and not the stand-ins."""


def of_vllm(archive):
    """The keys of vLLM's tables."""
    found = set()
    tables = dict.fromkeys(_SERVED, False)
    for node in ast.parse(archive.read(_VLLM)).body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        names = {target.id for target in targets if isinstance(target, ast.Name)} & set(_SERVED)
        if names:
            assert isinstance(node.value, ast.Dict), f"{names} is no table"
            tables |= dict.fromkeys(names, True)
            found |= {key.value for key in node.value.keys if isinstance(key, ast.Constant)}
    assert all(tables.values()), f"vLLM has no {[name for name, is_there in tables.items() if not is_there]}"
    return sorted(found)


def of_sglang(archive):
    """The classes that SGLang's files name as ``EntryClass``."""
    found = set()
    for path in archive.namelist():
        if path.startswith("sglang/srt/models/") and path.endswith(".py"):
            for node in ast.walk(ast.parse(archive.read(path))):
                if isinstance(node, ast.Assign) and any(
                    isinstance(target, ast.Name) and target.id == "EntryClass" for target in node.targets
                ):
                    found |= {each.id for each in ast.walk(node.value) if isinstance(each, ast.Name)}
    return sorted(found)


def document(of):
    """What the file says, of the archives of both."""
    return {
        "vllm": {"release": vllm.RELEASE, "architectures": of_vllm(of["vllm"])},
        "sglang": {"release": sglang.RELEASE, "architectures": of_sglang(of["sglang"])},
    }


if __name__ == "__main__":
    archives = {Path(path).name.partition("-")[0]: zipfile.ZipFile(path) for path in sys.argv[1:]}
    FILE.write_text(json.dumps(document(archives), indent=1) + "\n", encoding="utf-8")
