"""Trunks, decoders and heads."""
