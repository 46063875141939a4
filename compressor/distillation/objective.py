"""From settings to the objective: teachers, their weights, losses on logits and on inner layers."""

from typing import TYPE_CHECKING

import torch
from torch import nn

from compressor.distillation.losses.hinton import Hinton
from compressor.distillation.losses.hints import Hint
from compressor.distillation.settings import Distillation, Hints
from compressor.distillation.teacher import Teacher
from compressor.training.balance import class_weights
from compressor.training.objectives import Objective, WeightedSum, layer_outputs

if TYPE_CHECKING:
    from compressor.pipeline.context import Context


def objective_of(settings: Distillation, network: nn.Module, context: "Context") -> tuple[Objective, list[float]]:
    """What training `network` minimises, and the weight of each teacher.

    Raises:
        UserError: there is no such teacher, or no such layer.
    """
    watched = tuple(feature.teacher for feature in settings.features)
    teachers = [
        Teacher(context.teacher(stage_id), context, settings.views, watched if number == 0 else ())
        for number, stage_id in enumerate(settings.teacher_ids)
    ]
    weights, by_class = _weights(settings, teachers, context), class_weights(settings, context.data)
    terms: list[tuple[float, Objective]] = [
        (weight, Hinton(teacher, temperature=settings.temperature, alpha=settings.alpha, class_weights=by_class))
        for weight, teacher in zip(weights, teachers, strict=True)
    ]
    if settings.features:
        terms += zip(
            [feature.weight for feature in settings.features],
            _hints(settings.features, network, teachers[0], context),
            strict=True,
        )
    return WeightedSum(terms), weights


def _weights(settings: Distillation, teachers: list[Teacher], context: "Context") -> list[float]:
    if settings.weighting == "accuracy":
        accuracies = [teacher.accuracy(context) for teacher in teachers]
        if any(accuracies):
            return [accuracy / sum(accuracies) for accuracy in accuracies]
    return [1 / len(teachers)] * len(teachers)


def _hints(features: tuple[Hints, ...], network: nn.Module, teacher: Teacher, context: "Context") -> list[Objective]:
    """One hint for each setting, with initial weights from the seed."""
    example = torch.zeros(context.data.preprocess.input_shape(2))
    given = layer_outputs(network, [feature.student for feature in features], example)
    wanted = teacher.layer_outputs([feature.teacher for feature in features], example)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(context.seed_for("adapters"))
        return [
            Hint(teacher, each.student, each.teacher, given[each.student], wanted[each.teacher]) for each in features
        ]
