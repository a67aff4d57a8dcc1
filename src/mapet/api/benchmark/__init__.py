"""Benchmark of the training step: speed, memory, the machine's peak, predicted time."""
