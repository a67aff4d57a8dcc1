"""Image datasets, decoding, transforms and loaders."""
