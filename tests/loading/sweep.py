"""Small models of many architectures, half of each on disk, beside themselves on the CPU: what ``sweep.json`` holds.

``python -m tests.loading.sweep`` writes the table anew; ``test_sweep.py`` compares it with what comes out.
"""

import json
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from transformers.utils import logging

from devctl.devices import Device
from devctl.errors import DevctlError, first_line
from devctl.loading.proofs.compare import floats
from devctl.loading.proofs.places import find_places
from devctl.loading.run import smoke
from devctl.loading.run.inputs import prepare
from devctl.loading.weights import loader
from devctl.loading.weights.loader import LoadFormat
from devctl.loading.weights.offload import bytes_to_write
from devctl.models.files.resolve import resolve
from devctl.models.skeleton import read_skeleton
from devctl.models.tree import sizes
from devctl.placement import Strategy, place
from devctl.placement.budget import Budgets
from devctl.placement.judge import validate
from tests import small_models

TABLE = Path(__file__).with_name("sweep.json")
CPU, DISK = Device.cpu(), Device.disk()
TOLERANCE = 1e-5


def strategy_of(class_name):
    """The strategy that a class is placed by: as transformers does, or the best way, in turn."""
    return (Strategy.AUTO, Strategy.OPTIMAL)[[*small_models.SWEPT].index(class_name) % 2]


def try_model(class_name, folder):
    """What came out for one class: a row of the table."""
    model_class, config = small_models.of_class(class_name, **small_models.SWEPT[class_name])
    torch.manual_seed(0)
    model_class(config).eval().save_pretrained(folder)
    source = resolve(str(folder))
    skeleton = read_skeleton(source)
    whole = sizes(skeleton.tree)[""]
    budgets = Budgets(devices=((CPU, whole // 2), (DISK, 2**60)), given=True)
    ways = {"load_format": LoadFormat.AUTO, "on_progress": lambda _: None}
    row, strategy = {"class": class_name, "bytes": whole}, strategy_of(class_name)
    try:
        inputs = prepare(source, skeleton, prompt=None, new_tokens=2, trust_remote_code=False)
    except DevctlError as error:
        return row | {str(strategy): f"not run: {error.message}"}
    alone, _ = loader.load(source, skeleton, {"": CPU}, folder=None, **ways)
    expected = outputs(alone, inputs)

    def judge(device_map, offload):
        if refused := validate(skeleton.tree, device_map, [CPU, DISK]):
            return f"refused: {refused[0]}"
        try:
            model, _ = loader.load(source, skeleton, device_map, folder=offload, **ways)
            places = find_places(model, device_map)
            ran = smoke.run(model, inputs, device=loader.main_device(model, device_map), new_tokens=2)
            found = outputs(model, inputs)
        except DevctlError as error:
            return f"failed: {error.message.replace(str(folder), class_name)}"
        written = sum(path.stat().st_size for path in offload.iterdir()) > 0
        if written != (bytes_to_write(source, skeleton, device_map, random_weights=False) > 0):
            return "failed: it is not written to the offload folder what was predicted"
        if places.misplaced or ran.nonfinite or found.keys() != expected.keys():
            return f"failed: {places.misplaced[:1]} {ran.nonfinite}"
        apart = max(float((found[key] - expected[key]).abs().max()) for key in expected)
        return "equal" if apart <= TOLERANCE else f"failed: {apart:.2g} apart"

    placement = place(skeleton.tree, budgets, strategy)
    with tempfile.TemporaryDirectory() as offload:
        found = judge(dict(placement.device_map), Path(offload))
    return row | {str(strategy): found, f"on disk by {strategy}": placement.on_disk}


def outputs(model, inputs):
    """Every floating tensor that a forward gives, by name."""
    with torch.inference_mode():
        given = {**inputs.tensors, **smoke._decoder_inputs(model, inputs.tensors)}
        torch.manual_seed(0)
        return dict(floats(model(**given), "output"))


def rows(names):
    """The rows of ``names``."""
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    for name in names:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                yield try_model(name, Path(folder))
            except Exception as error:  # noqa: BLE001 - told in the table
                yield {"class": name, "made": f"{type(error).__name__}: {first_line(error)}"}


def as_text(table):
    """The table as it is kept: a row a line."""
    return "[\n" + ",\n".join(json.dumps(row) for row in table) + "\n]\n"


if __name__ == "__main__":
    names = sys.argv[1:] or small_models.SWEPT
    text = as_text(rows(names))
    sys.stdout.write(text)
    if not sys.argv[1:]:
        TABLE.write_text(text)
