"""`python -m charm` is the command `charm`."""

from charm.app.command import main

if __name__ == "__main__":
    main()
