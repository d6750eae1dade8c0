"""What a shell offers at TAB, from the command line as data: no command is imported for it, nor what reads options.

``commands.json`` is that data, written from the commands by ``make completions`` (`devctl.cli.described`).
"""
