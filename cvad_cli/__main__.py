"""`python -m cvad_cli` is `cvad`."""

from cvad_cli.cli.app import main

if __name__ == "__main__":
    main()
