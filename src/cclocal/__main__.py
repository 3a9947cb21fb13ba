"""`python -m cclocal`."""

from cclocal.cli.main import main

if __name__ == "__main__":
    main()
