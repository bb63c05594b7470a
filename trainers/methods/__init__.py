"""Two-stage methods: one paper a module."""
