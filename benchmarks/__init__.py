"""Benchmarks: each prints a ratio against a named baseline, both measured side by side in one call."""
