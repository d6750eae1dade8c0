"""The same over several hosts: a process a rank, watched, and one report."""
