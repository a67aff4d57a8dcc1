"""Settings as dataclasses, their YAML form, and named recipes."""
