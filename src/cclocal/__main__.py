"""`python -m cclocal`."""

from cclocal.cli import main

if __name__ == "__main__":
    main()
