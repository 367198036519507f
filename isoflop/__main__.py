"""`python -m isoflop` is the command line."""

from isoflop.cli import main

main(prog_name="isoflop")
