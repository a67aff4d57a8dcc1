"""From a picture to one visual token per patch."""
