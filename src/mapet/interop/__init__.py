"""Other people's checkpoints in, other libraries' formats out."""
