"""`python -m rdsx.cli` is `rdsx`."""

from rdsx.cli import main

if __name__ == "__main__":
    main()
