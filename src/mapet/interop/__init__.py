"""Published checkpoints in, formats of other libraries out."""
