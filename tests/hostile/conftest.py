"""Hostile input meets invented machines."""

from tests.inventory.conftest import machine, nvml_folder  # noqa: F401 - fixtures
