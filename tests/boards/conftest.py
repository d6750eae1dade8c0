"""The stand-in driver, as the tests of the inventory have it."""

from tests.inventory.conftest import machine, nvml_folder  # noqa: F401 - fixtures
