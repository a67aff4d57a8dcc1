"""From settings to objects: models, optimizers and batch streams."""
