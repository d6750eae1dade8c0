"""Where it goes: pure functions from a module tree and budgets to a placement. No I/O, no torch."""

from devctl.placement.budget import Budgets
from devctl.placement.finding import place, place_whole, place_within
from devctl.placement.installed import Installed
from devctl.placement.placement import Placement
from devctl.placement.strategy import Strategy

__all__ = ["Budgets", "Installed", "Placement", "Strategy", "place", "place_whole", "place_within"]
