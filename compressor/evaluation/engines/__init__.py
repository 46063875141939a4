"""What runs and times a file, one engine per module.

A new one is a subclass of `Engine` that a package names in the entry-point group `compressor.engines`, as ours are in
`pyproject.toml`. `measure: {engines: [...]}` and `compress bench --engine` then take its name.
"""
