"""`python -m emulator` is `pirlab`."""

from emulator.cli import main

main(prog_name="pirlab")
