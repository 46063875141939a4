"""Commands about compressor itself: its stages, the schema of a pipeline, a first pipeline, completion."""

import json
from importlib.resources import files as resources
from pathlib import Path
from typing import Any

import click
from click.shell_completion import get_completion_class

from compressor import pipeline as pipelines
from compressor.commands.options import PATH, check_folder_of
from compressor.config.spec import did_you_mean, keys_of
from compressor.console import Console, table
from compressor.errors import UserError
from compressor.storage import files

SCHEMA = "compressor.schema.json"


def _stage_names(context: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    return [name for name in pipelines.discover() if name.startswith(incomplete)]


@click.command()
@click.argument("name", required=False, shell_complete=_stage_names)
def stages(name: str | None) -> None:
    """List the installed stages, or show the settings of one.

    \b
    Examples:
      compress stages
      compress stages prune
    """
    catalogue = pipelines.discover()
    console = Console.terminal()
    if name is None:
        rows = []
        for tag, stage in catalogue.items():
            example = ", ".join(f"{key}: {value}" for key, value in stage.example.items())
            rows.append([tag, _summary(stage), f"{{{example}}}"])
        console.say(table(["stage", "what it does", "example"], rows))
        return
    if name not in catalogue:
        raise UserError(f"there is no stage {name!r}{did_you_mean(name, catalogue) or '; compress stages lists them'}")
    stage = catalogue[name]
    console.say(f"{name}: {_summary(stage)}", style="bold")
    rows = []
    for key, field in keys_of(stage).items():
        default = "required" if field.is_required() else json.dumps(field.default, default=str)
        rows.append([key, name if key == "id" else default, field.description or ""])
    console.say(table(["setting", "default", "meaning"], rows))


@click.command()
def schema() -> None:
    """Print the JSON Schema of a pipeline file, for editors.

    \b
    Example:
      compress schema > compressor.schema.json
    """
    print(_schema_text(), end="")


@click.command()
@click.argument("path", type=PATH, default="pipeline.yaml", metavar="[PIPELINE.yaml]")
def init(path: Path) -> None:
    """Write a commented pipeline to start from, and its schema beside it.

    \b
    Example:
      compress init mine.yaml
    """
    if path.name == SCHEMA:
        raise UserError(f"{SCHEMA} is the name of the schema that is written beside a pipeline; name another file")
    if path.exists():
        raise UserError(f"{path} already exists; name another file")
    check_folder_of(path)
    template = resources("compressor.report").joinpath("templates", "pipeline.yaml").read_text(encoding="utf-8")
    files.write_text(path.with_name(SCHEMA), _schema_text())
    files.write_text(path, template.replace("pipeline.yaml", path.name))
    Console.terminal().say(
        f"{path} is a pipeline to start from, and {SCHEMA} beside it is for your editor; compress run {path} runs it."
    )


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print what makes a shell complete commands, options and files.

    \b
    Examples:
      eval "$(compress completion bash)"                                  # in ~/.bashrc; zsh likewise
      compress completion fish > ~/.config/fish/completions/compress.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None
    print(kind(context.find_root().command, {}, "compress", "_COMPRESS_COMPLETE").source())


def _schema_text() -> str:
    return json.dumps(pipelines.json_schema(), indent=1, ensure_ascii=False) + "\n"


def _summary(stage: Any) -> str:
    return (stage.__doc__ or "").partition("\n")[0]


COMMANDS = (stages, schema, init, completion)
