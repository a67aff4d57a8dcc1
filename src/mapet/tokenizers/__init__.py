"""Tokenizers: images to one visual token per patch."""
