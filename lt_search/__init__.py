"""Hyperparameter search for two-stage, long-tailed medical image classification."""
