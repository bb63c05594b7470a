"""Class statistics and virtual features: Gaussians, draws, probes and feature caches."""
