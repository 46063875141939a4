"""Running a pipeline: the straight line, what is kept and reused, latency, comparison."""
