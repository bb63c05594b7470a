"""Configuration: search spaces, ranges, options, and the resolved spec of a run."""
