"""From settings to the objective: teachers, their weights, losses on logits and on inner layers."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from compressor.distillation.layers import classifier_of, shared_layers
from compressor.distillation.lesson import Lesson
from compressor.distillation.losses import attention, hints, srd
from compressor.distillation.settings import SRD, Attention, Distillation, Hints
from compressor.distillation.teacher import Teacher
from compressor.training.balance import class_weights
from compressor.training.objectives import INPUT_OF, Objective, WeightedSum, layer_outputs

if TYPE_CHECKING:
    from compressor.pipeline.context import Context

ON_LAYERS = {Hints: hints.Hint, Attention: attention.Attention, SRD: srd.SRD}


class LayerPair(NamedTuple):
    """A layer of each network, and the loss between them."""

    feature: Hints | Attention | SRD
    weight: float
    student: str
    teacher: str


def objective_of(settings: Distillation, network: nn.Module, context: "Context") -> tuple[Objective, list[float]]:
    """What training `network` minimises, and the weight of each teacher.

    Raises:
        UserError: there is no such teacher, or no such layer.
    """
    first, *others = (context.teacher(stage_id) for stage_id in settings.teacher_ids)
    example = torch.zeros(context.data.preprocess.input_shape(2))
    pairs = list(_pairs(settings.features, network, first.copy_network(), example)) if settings.features else []
    teachers = [Teacher(first, context, settings.views, tuple(pair.teacher for pair in pairs))]
    teachers += [Teacher(other, context, settings.views) for other in others]
    weights, by_class = _weights(settings, teachers, context), class_weights(settings, context.data)
    terms: list[tuple[float, Objective]] = [
        (weight, Lesson(teacher, settings, by_class)) for weight, teacher in zip(weights, teachers, strict=True)
    ]
    if pairs:
        on_layers = _on_layers(pairs, network, teachers[0], example, context.seed_for("adapters"))
        terms += zip([pair.weight for pair in pairs], on_layers, strict=True)
    return WeightedSum(terms), weights


def _weights(settings: Distillation, teachers: list[Teacher], context: "Context") -> list[float]:
    if settings.weighting == "accuracy":
        accuracies = [teacher.accuracy(context) for teacher in teachers]
        if any(accuracies):
            return [accuracy / sum(accuracies) for accuracy in accuracies]
    return [1 / len(teachers)] * len(teachers)


def _pairs(
    features: Sequence[Hints | Attention | SRD], student: nn.Module, teacher: nn.Module, example: Tensor
) -> Iterator[LayerPair]:
    """The layers that each setting means."""
    for feature in features:
        if isinstance(feature, SRD):
            ends = (INPUT_OF + classifier_of(network, example) for network in (student, teacher))
            yield LayerPair(feature, feature.weight, *ends)
        elif feature.student is not None and feature.teacher is not None:
            yield LayerPair(feature, feature.weight, feature.student, feature.teacher)
        else:
            shared = shared_layers(student, teacher, example)
            yield from (LayerPair(feature, feature.weight / len(shared), name, name) for name in shared)


def _on_layers(
    pairs: Sequence[LayerPair], network: nn.Module, teacher: Teacher, example: Tensor, seed: int
) -> list[Objective]:
    """One loss for each pair, with initial weights from the seed."""
    given = layer_outputs(network, [pair.student for pair in pairs], example)
    wanted = teacher.layer_outputs([pair.teacher for pair in pairs], example)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return [
            ON_LAYERS[type(pair.feature)](
                teacher, pair.student, pair.teacher, given[pair.student], wanted[pair.teacher]
            )
            for pair in pairs
        ]
