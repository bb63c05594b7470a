"""Two-stage trainers for long-tailed data, one paper a file. Knows no Ray, no Optuna, no disk layout."""
