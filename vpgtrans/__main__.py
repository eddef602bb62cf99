"""``python -m vpgtrans``."""

from vpgtrans.cli import main

if __name__ == "__main__":
    main()
