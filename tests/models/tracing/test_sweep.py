"""Every architecture is traced, or the table says why not."""

import json

import pytest

from devctl.models.footprint import Footprint, peak_beside_weights, state_bytes
from tests.models.tracing.sweep import TABLE, classes, sweep, untraced

PARTS = 8
"""Of the sweep, which are run side by side."""


@pytest.mark.slow
def test_the_table_names_classes_that_there_are():
    assert json.loads(TABLE.read_text()).keys() <= {model_class.__name__ for _, model_class in classes()}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("part", range(PARTS))
def test_every_architecture_is_traced_or_in_the_table(part):
    found = sweep(among=classes()[part::PARTS])
    table = json.loads(TABLE.read_text())
    # LwDetr warns as it is built, which is an error here and none to `python -m tests.models.tracing.sweep`
    expected = table.keys() & {name for name, each in found.items() if each is not None}
    assert untraced(found).keys() == expected
    traced = {name: each for name, each in found.items() if isinstance(each, Footprint)}
    assert len(traced) > 250 // PARTS
    configs = {model_class.__name__: config_class for config_class, model_class in classes()}
    for name, footprint in traced.items():
        assert peak_beside_weights(footprint.blocks) > 0, name
        estimated = [note for note in footprint.notes if not note.startswith("counted with ")]
        assert footprint.exact == (not estimated), name
        # MPT's default config, for one, keeps no cache
        keeps = getattr(configs[name](), "use_cache", True)
        if name.endswith("ForCausalLM") and keeps:
            assert state_bytes(footprint) > 0, name
