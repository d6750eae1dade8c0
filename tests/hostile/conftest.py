"""Hostile input meets invented machines."""

from tests.cli.conftest import started  # noqa: F401 - fixtures
from tests.inventory.conftest import machine, nvml_folder  # noqa: F401 - fixtures
