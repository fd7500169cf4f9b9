"""`python -m backplane.cli`."""

from backplane.cli.app import main

main()
