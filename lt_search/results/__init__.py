"""Results of a run: summary, export, evaluation, prediction, retention and report."""
