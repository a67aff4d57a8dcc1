"""Measuring: the training step beside other formulations of it, what the machine could do, what a run will take."""
