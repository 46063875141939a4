"""What a pipeline file may say, and what is said of one that is wrong."""
