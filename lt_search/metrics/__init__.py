"""Metrics of long-tailed classification, and their bootstrap standard errors and intervals."""
