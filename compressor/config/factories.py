"""A network of one's own, as a pipeline names it: `package.module:Factory`."""

LIBRARIES = ("torchvision", "timm")  # whose networks are `library:NAME`


def factory_of(model: str) -> str | None:
    """The factory that a model's name is; None for a network that ships with a library."""
    return model if ":" in model and model.partition(":")[0] not in LIBRARIES else None
