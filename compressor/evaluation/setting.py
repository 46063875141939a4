"""One way to time a network."""

from pydantic import BaseModel, ConfigDict

REFERENCE = "onnxruntime"  # the engine that scores every file, and that "how fast?" is answered for first


class Setting(BaseModel):
    """An engine, where it computes, and how many images at once."""

    model_config = ConfigDict(frozen=True)

    engine: str
    device: str
    threads: int
    batch: int
