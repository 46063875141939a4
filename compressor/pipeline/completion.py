"""What a pipeline's data leave open, as pretrained networks expect it."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from compressor.config.spec import first_problem
from compressor.console import Console
from compressor.errors import SpecError
from compressor.pipeline.pipeline import Pipeline
from compressor.pipeline.stage import named


def completed(pipeline: Pipeline, console: Console | None = None) -> Pipeline:
    """The pipeline, with what its data leave open as the first stage's network expects it.

    `console` shows what that is, and what the networks of later stages expect otherwise.

    Raises:
        UserError: a network or its weights are not known, or what is set does not fit them.
    """
    data = pipeline.data
    channels = data.preprocess().channels
    console = console or Console()
    for number, stage in enumerate(pipeline.stages):
        with named(stage):
            expected = stage.expected_data(channels)
            if number == 0 and expected:
                try:
                    data = data.completed(expected)
                except ValidationError as error:
                    raise SpecError(f"data: {first_problem(error)}") from error
                if taken := {name: value for name, value in data if getattr(pipeline.data, name) != value}:
                    console.say(f"data as the weights of {stage.id} expect it: {_words(taken)}")
        preprocess = data.preprocess()
        other = {name: value for name, value in expected.items() if getattr(preprocess, name) != value}
        if number > 0 and other:
            console.say(f"  warning: the weights of {stage.id} expect other data: {_words(other)}")
    return pipeline.model_copy(update={"data": data})


def _words(settings: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name}: {list(value) if isinstance(value, tuple) else value}" for name, value in settings.items()
    )
