"""``python -m palimpsest``."""

from palimpsest.cli import main

if __name__ == "__main__":
    main()
