"""Readers of data sets, one module for each kind of files; nothing is unpickled.

Libraries that take seconds to import are imported by the readers that need them.
"""
