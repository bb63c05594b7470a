"""`python -m lt_search` is `lt-search`."""

from lt_search.cli import entry_point

if __name__ == "__main__":
    entry_point()
