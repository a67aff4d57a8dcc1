"""What every room uses: random bits, files, locks, foreign weights, process groups."""
