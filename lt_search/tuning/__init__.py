"""Searches on Ray Tune. The only package that imports Ray."""
