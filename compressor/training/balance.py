"""Classes of different sizes: each comes equally often, or its loss weighs more the rarer it is."""

import torch
from torch import Tensor

from compressor.data.dataset import Dataset
from compressor.training.settings import Training


def epoch_order(labels: Tensor, training: Training, generator: torch.Generator) -> Tensor:
    """The N images of an epoch, as indices int64 `[N]` into all N training images of classes `labels` (`[N]`).

    Every image once; with `balance: sampler`, every class equally often, to within one image. No image then comes once
    more before all others of its class have come.
    """
    count = len(labels)
    if training.balance != "sampler":
        return torch.randperm(count, generator=generator)
    classes = [(labels == label).nonzero()[:, 0] for label in labels.unique()]
    share = -(-count // len(classes))  # rounded up
    drawn = []
    for images in classes:
        rounds = [images[torch.randperm(len(images), generator=generator)] for _ in range(-(-share // len(images)))]
        drawn.append(torch.cat(rounds)[:share])
    by_turns = torch.stack(drawn, 1).flatten()[:count]
    return by_turns[torch.randperm(count, generator=generator)]


def class_weights(training: Training, data: Dataset) -> Tensor | None:
    """With `balance: weights`, what each class weighs in the loss, float32 `[classes]`; 1 on average of the images."""
    if training.balance != "weights":
        return None
    images = data.train.labels.bincount(minlength=len(data.labels))
    weights = len(data.train) / ((images > 0).sum() * images)
    return weights.where(images > 0, torch.zeros(()))
