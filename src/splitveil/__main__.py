"""``python -m splitveil``: the command line without its installed script."""

from splitveil.cli import main

main()
