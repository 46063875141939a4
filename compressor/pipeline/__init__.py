"""Pipelines and stages: how they connect, what a stage is given, the schema of a file."""
