"""``devctl list``: what is here."""

from devctl.cli import render
from devctl.cli.options import Json
from devctl.inventory import take_inventory


def list_(json: Json = False) -> None:
    """Show the GPUs, CPU and disks of this machine, with the memory that can be used.

    Imports no framework and takes no memory on any GPU.
    """
    inventory = take_inventory()
    render.answer(render.to_json(inventory) if json else render.inventory_table(inventory))
