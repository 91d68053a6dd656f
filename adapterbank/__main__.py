"""`python -m adapterbank` is the command `adapterbank`."""

from adapterbank.cli.app import main

if __name__ == "__main__":
    main()
