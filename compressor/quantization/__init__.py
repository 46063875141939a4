"""Where a network is rounded to integers, how ranges are chosen, and networks that fake int8."""
