"""Invented boards for what is held against them."""

from tests.inventory.conftest import machine, nvml_folder, probe  # noqa: F401 - fixtures
