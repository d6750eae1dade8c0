"""Where it goes: pure functions from a module tree and budgets to a placement. No I/O, no torch."""
