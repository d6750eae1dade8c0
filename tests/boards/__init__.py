"""The instrument that holds devctl's claims against real boards: ``python -m tests.boards``. See docs/boards.md."""
