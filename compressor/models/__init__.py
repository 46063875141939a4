"""Networks as saved artifacts: architectures, structural changes, size."""
