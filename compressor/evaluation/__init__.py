"""How right and how fast a file is, and what it gets wrong that another did not."""
