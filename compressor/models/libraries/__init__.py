"""Libraries whose networks are `library:NAME`, one per module: how it builds them, and where its trained weights are.

A new one is a module here, a line in `catalogue.py`, and its name in `compressor/config/factories.py`.
"""
