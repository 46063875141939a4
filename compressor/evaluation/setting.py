"""One way to time a network."""

from compressor.evaluation.figures import Figures, Total

REFERENCE = "onnxruntime"  # the engine that scores every file, and that "how fast?" is answered for first


class Setting(Figures):
    """An engine, where it computes, and how many images at once."""

    engine: str
    device: str
    threads: Total
    batch: Total
