"""Two-stage trainers for long-tailed data, one paper per module. Independent of Ray, Optuna and the layout on disk."""
