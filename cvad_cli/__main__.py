"""`python -m cvad_cli` is `cvad`."""

from cvad_cli.cli.app import main

main()
