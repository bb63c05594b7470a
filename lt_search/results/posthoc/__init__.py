"""Post-hoc settings tuned on stored validation predictions: views and their merging, ensembles, tau, thresholds."""
