"""`python -m backplane`: the command line, where the script `backplane` is not on the path."""

from backplane.cli import main

if __name__ == "__main__":
    main()
