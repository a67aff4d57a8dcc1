"""Images of a run."""
