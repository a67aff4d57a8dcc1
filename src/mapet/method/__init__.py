"""The paper in pure torch: orders, patterns, the encoder and its objectives."""
