"""What needs no training, tuned on stored validation predictions: views, their merging, ensembles, tau, thresholds."""
