"""python -m headwater: the command line, as programs that start Python modules (torchrun) want it."""

from headwater.cli import main

main()
