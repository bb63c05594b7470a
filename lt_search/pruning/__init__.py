"""Stage-wise asynchronous successive halving. Usable without the rest of lt-search, and without Ray."""
