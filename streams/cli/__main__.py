"""`python -m streams.cli` is `upwell`."""

from streams.cli import main

main()
