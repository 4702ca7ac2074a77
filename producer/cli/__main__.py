"""`python -m producer.cli` is the command `vitrina`."""

from producer.cli import main

main()
