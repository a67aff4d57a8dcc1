"""From an image to one visual token per patch."""
