"""``python -m devctl``."""

from devctl.cli import main

main()
