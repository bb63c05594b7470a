"""Search spaces shipped with lt-search, one YAML file each. No code."""
