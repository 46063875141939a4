"""ONNX files: writing them lean, reading them safely, and sessions that run them."""
