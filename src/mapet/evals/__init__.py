"""Evaluations: features and labels in, scores with confidence intervals out."""
