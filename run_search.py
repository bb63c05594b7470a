"""`python run_search.py --space ldrnet` is `lt-search search --space ldrnet`."""

import sys

from lt_search.cli import main

if __name__ == "__main__":
    sys.exit(main(["search", *sys.argv[1:]]))
