"""Complete settings of named experiments."""
