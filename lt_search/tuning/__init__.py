"""Searches on Ray Tune; the only package that imports Ray."""
