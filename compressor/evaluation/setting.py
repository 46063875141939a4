"""One way to time a network."""

from compressor.evaluation.figures import Figures, Total

REFERENCE = "onnxruntime"  # the engine that scores every file and gives the verdict's speed-up


class Setting(Figures):
    """An engine, its device and threads, and how many images at once."""

    engine: str
    device: str
    threads: Total
    batch: Total
