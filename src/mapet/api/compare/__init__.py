"""Comparisons of objectives under one setting: what is run, how far it has come, and what came out."""
