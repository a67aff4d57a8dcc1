"""One training loop for every kind of training; it knows no objective."""
