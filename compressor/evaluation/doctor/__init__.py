"""Where an ONNX file spends its time on this machine, and why."""
