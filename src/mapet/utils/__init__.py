"""Shared by all rooms: random numbers, files, locks, third-party weights, process groups."""
