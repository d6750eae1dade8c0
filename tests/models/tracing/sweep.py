"""Every architecture in transformers with its default config, traced.

``python -m tests.models.tracing.sweep`` writes the table of those that can't be.
"""

import json
import tempfile
from pathlib import Path

import transformers

from devctl.errors import UntracedError, first_line
from devctl.models.files.resolve import resolve
from devctl.models.footprint import Workload
from devctl.models.inputs import most_tokens
from devctl.models.skeleton import read_skeleton
from devctl.models.tracing.trace import trace_footprint

TABLE = Path(__file__).with_name("untraced.json")

# the first that a config has a class for is traced
_TASKS = (
    "CAUSAL_LM",
    "IMAGE_TEXT_TO_TEXT",
    "MULTIMODAL_LM",
    "SPEECH_SEQ_2_SEQ",
    "SEQ_TO_SEQ_CAUSAL_LM",
    "MASKED_LM",
    "CTC",
    "IMAGE_CLASSIFICATION",
    "AUDIO_CLASSIFICATION",
    None,
)


def classes():
    """A config class and the model class that is traced for it."""
    auto = transformers.models.auto.modeling_auto
    found = {}
    for task in _TASKS:
        mapping = getattr(auto, f"MODEL_FOR_{task}_MAPPING" if task else "MODEL_MAPPING", {})
        for config_class in mapping:
            try:
                model_class = mapping[config_class]
            except ValueError:  # an entry whose class transformers does not export
                continue
            if config_class.base_config_key:  # a part of a model that is traced as a whole
                continue
            found.setdefault(config_class, model_class[0] if isinstance(model_class, tuple | list) else model_class)
    return sorted(found.items(), key=lambda item: item[1].__name__)


def skeleton(config_class, model_class):
    """The model of a default config, without weights.

    Raises:
        DevctlError: it can't be built.
    """
    config = config_class()
    config.architectures = [model_class.__name__]
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        return read_skeleton(resolve(folder), dtype="bfloat16")


def workload(config):
    """Few tokens, unless an image is among them."""
    wanted = 640 if hasattr(config, "vision_config") else 96
    most = most_tokens(config) or wanted
    return Workload(context_length=min(wanted, most - most // 8), new_tokens=4)


def sweep(report=lambda *_: None, among=None):
    """What came of each, or of those ``among`` them: its footprint, why it is not traced, or None if none is built."""
    found = {}
    for config_class, model_class in classes() if among is None else among:
        try:
            built = skeleton(config_class, model_class)
        except Exception as error:  # noqa: BLE001 - a default config need not build
            found[model_class.__name__] = None
            report(model_class.__name__, f"not built: {first_line(error)}")
            continue
        try:
            found[model_class.__name__] = trace_footprint(built, workload(built.config))
        except UntracedError as error:
            cause = error.__cause__ or error
            found[model_class.__name__] = f"{type(cause).__name__}: {first_line(cause)}"
        report(model_class.__name__, found[model_class.__name__])
    return found


def untraced(found):
    """The table: why, by class."""
    return {name: why for name, why in found.items() if isinstance(why, str)}


def main():
    import time

    start = time.time()

    def report(name, what):
        nonlocal start
        text = what if isinstance(what, str) else f"{len(what.blocks)} blocks {what.exact} {what.notes}"
        print(f"{time.time() - start:6.2f} {name}: {text}", flush=True)
        start = time.time()

    found = sweep(report)
    TABLE.write_text(json.dumps(untraced(found), indent=2) + "\n")
    print(
        len(found), "classes,", sum(f is None for f in found.values()), "not built,", len(untraced(found)), "not traced"
    )


if __name__ == "__main__":
    main()
