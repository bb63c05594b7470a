"""Readers of published data sets: one data set a module."""
