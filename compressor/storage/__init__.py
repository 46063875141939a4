"""Files that are whole or absent, sealed tensors, checkpoints, and digests of source code."""
