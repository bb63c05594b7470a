"""Losses of long-tailed classification."""
