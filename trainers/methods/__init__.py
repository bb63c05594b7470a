"""Two-stage methods, one paper per module, and what several of them share."""
