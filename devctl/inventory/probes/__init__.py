"""The probes: each asks one library or folder of the system, and hands over records."""
