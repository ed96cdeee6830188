"""`python -m trainer`: the command line, where the console script may not be on the path."""

from trainer.cli.app import main

main()
