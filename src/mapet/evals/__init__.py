"""What an encoder has learned, as named numbers with intervals."""
