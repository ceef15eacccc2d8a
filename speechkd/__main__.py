"""`python -m speechkd` is the command line."""

from speechkd.cli import main

main()
