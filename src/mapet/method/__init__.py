"""The method in pure torch: orders, attention patterns, the encoder and the objectives."""
