"""The search file: a pipeline in which ranges stand in place of values."""

import copy
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from compressor.config import yaml_file
from compressor.config.spec import problems_of
from compressor.config.yaml_file import Key, Source, dotted
from compressor.errors import SpecError
from compressor.pipeline.pipeline import Pipeline
from compressor.search.settings import Search

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

SEARCH, CHOOSE, LOG = "search", "choose", "log"
BOUNDS = {"low", "high"}
# Where ranges may stand; the rest decides nothing, or which images networks are judged on.
VARIED = {"stages": None, "data": {"size", "resize", "interpolation", "augment"}}
MOST = 1e15  # of a bound
TRIED = 200  # combinations of values, for one that is valid


@dataclass(frozen=True)
class Range:
    """The values that one setting may take: some that are listed, or numbers from `low` to `high`.

    Attributes:
        key: where it stands in the file.
        name: the same with the ids of stages, as `--set` takes it.
        choices: the listed values; none if it has bounds.
        low: the least value; whole numbers if both bounds are.
        high: the greatest.
        log: whether every factor is as likely, not every difference.
    """

    key: Key
    name: str
    choices: tuple[Any, ...] = ()
    low: float = 0
    high: float = 0
    log: bool = False

    @property
    def examples(self) -> tuple[Any, ...]:
        """Values that have to be valid: all that are listed, or both bounds."""
        return self.choices or (self.low, self.high)

    @property
    def distribution(self) -> "BaseDistribution":
        """What Optuna samples: listed values are JSON, since they may be lists or mappings."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.choices:
            return CategoricalDistribution([json.dumps(choice) for choice in self.choices])
        if self.is_counted:
            return IntDistribution(int(self.low), int(self.high), log=self.log)
        return FloatDistribution(self.low, self.high, log=self.log)

    @property
    def is_counted(self) -> bool:
        """Whether it has so many values, and not every number between two."""
        return bool(self.choices) or (isinstance(self.low, int) and isinstance(self.high, int))

    @property
    def all_values(self) -> Sequence[Any]:
        """Every value, where they can be counted."""
        return self.choices or range(int(self.low), int(self.high) + 1)

    @property
    def size(self) -> float:
        """The number of values; infinite if it may be any real number."""
        return (len(self.choices) or self.high - self.low + 1) if self.is_counted else math.inf

    def sample_of(self, value: Any) -> Any:
        """The sample that stands for a value."""
        return json.dumps(value) if self.choices else value

    def value_of(self, sampled: Any) -> Any:
        """The value that a sample of the distribution stands for."""
        return json.loads(sampled) if self.choices else sampled


@dataclass(frozen=True)
class Space:
    """All pipelines that a search file stands for."""

    source: Source
    ranges: tuple[Range, ...]

    @property
    def size(self) -> float:
        """The number of different pipelines; infinite if a setting may be any real number."""
        return math.prod(each.size for each in self.ranges)

    def pipeline(self, values: Mapping[str, Any]) -> Pipeline:
        """The pipeline in which every range has its value, by its name.

        Raises:
            SpecError: these values do not go together.
        """
        content = copy.deepcopy(self.source.content)
        for each in self.ranges:
            _holder(content, each.key)[each.key[-1]] = copy.deepcopy(values[each.name])
        return Pipeline.parse(replace(self.source, content=content))

    @cached_property
    def example(self) -> Pipeline:
        """A valid pipeline of the space: with the first value of every range, or else other ones that are listed.

        Raises:
            SpecError: none of the first combinations is valid; what is wrong with the first is said.
        """
        names, wrong = [each.name for each in self.ranges], list[SpecError]()
        for values in itertools.islice(itertools.product(*(each.examples for each in self.ranges)), TRIED):
            try:
                return self.pipeline(dict(zip(names, values, strict=True)))
            except SpecError as error:
                wrong.append(error)
        raise wrong[0]


def load(path: Path, overrides: Sequence[str] = ()) -> tuple[Search, Space]:
    """Read a search file, with `--set` overrides.

    Raises:
        SpecError: everything that is wrong with it, each error with file, line and column.
    """
    source = yaml_file.read(path, overrides)
    if not isinstance(source.content, dict) or SEARCH not in source.content:
        raise SpecError(
            f"{source.name}: has no `search:`; a search file is a pipeline with a `search:` of its own, as in "
            "search: {goal: {minimize: latency, max_drop: 0.5}, budget: {trials: 20}}"
        )
    try:
        search = Search.model_validate(source.content.pop(SEARCH))
    except ValidationError as error:
        problems = problems_of(error, (SEARCH,), Search)
        raise SpecError(*(f"{source.place(key)}: {dotted(key)}: {what}" for key, what in problems)) from error
    space = Space(source, tuple(_ranges(source, (), "")))
    if not space.ranges:
        raise SpecError(
            f"{source.name}: nothing may vary; write a range in place of a value, as in "
            "learning_rate: {low: 0.01, high: 0.2, log: true} or epochs: {choose: [10, 20]}"
        )
    first = space.example
    if first.seeds:
        raise SpecError(f"{source.place(('seeds',))}: seeds: every trial runs once; name one seed")
    if search.goal.max_drop is not None:
        _check_baseline(space, [stage.id for stage in first.stages].index(first.baseline_id), len(first.stages))
    for each in space.ranges:
        for index, value in enumerate(each.examples):
            _check(space, each, index, value)
    return search, space


def _check_baseline(space: Space, baseline: int, stages: int) -> None:
    """For a contract: refuse what would let a trial win by making its baseline worse.

    Raises:
        SpecError: the baseline may vary, or is what ships.
    """
    source = space.source
    if baseline == stages - 1:
        raise SpecError(
            f"{source.place(('stages',))}: stages: a contract compares what ships with the baseline, an earlier stage; "
            "add one"
        )
    for each in space.ranges:
        if each.key[0] != "stages" or int(each.key[1]) <= baseline:
            raise SpecError(
                f"{source.place(each.key)}: {each.name}: may not vary in a contract, since the baseline depends on it; "
                "give it one value, or search for the front"
            )


def _check(space: Space, of: Range, index: int, value: Any) -> None:
    """Refuse a value that is wrong by itself, and say where it stands; what else is wrong is a matter of combinations.

    Raises:
        SpecError: it is wrong.
    """
    inside: Key = (CHOOSE, index) if of.choices else (("low", "high")[index],)
    place = space.source.place((*of.key, *inside))
    placed = replace(space, source=replace(space.source, places={**space.source.places, of.key: place}))
    try:
        placed.pipeline({**{each.name: each.examples[0] for each in space.ranges}, of.name: value})
    except SpecError as error:
        own = [problem for problem in str(error).splitlines() if problem.startswith(f"{place}: ")]
        if own:
            raise SpecError(*own) from error


def _ranges(source: Source, key: Key, name: str) -> Iterator[Range]:
    """Every range at `key` or below it."""
    content = source.content
    for part in key:
        content = content[part]
    if isinstance(content, dict) and (CHOOSE in content or content.keys() >= BOUNDS):
        if not _may_vary(key):
            raise SpecError(f"{source.place(key)}: {name}: may not vary; give it one value")
        yield _range(source, key, name, content)
    elif isinstance(content, dict | list):
        for part, inner in content.items() if isinstance(content, dict) else enumerate(content):
            of_stage = key == ("stages",) and isinstance(inner, dict)
            called = inner.get("id", inner.get("stage", part)) if of_stage else part
            yield from _ranges(source, (*key, part), f"{name}.{called}" if name else str(called))


def _may_vary(key: Key) -> bool:
    if not key or key[0] not in VARIED:
        return False
    parts = VARIED[str(key[0])]
    return parts is None or (len(key) > 1 and key[1] in parts)


def _range(source: Source, key: Key, name: str, content: dict[str, Any]) -> Range:
    """A range, as it is written.

    Raises:
        SpecError: it is wrong.
    """

    def wrong(what: str, *inside: str) -> SpecError:
        return SpecError(f"{source.place((*key, *inside))}: {name}: {what}")

    allowed = {CHOOSE} if CHOOSE in content else {*BOUNDS, LOG}
    if unknown := content.keys() - allowed:
        expected = "`choose`" if CHOOSE in content else "`low`, `high` and `log`"
        raise wrong(f"a range has {expected}, and no `{min(unknown)}`", min(unknown))
    if CHOOSE in content:
        choices = content[CHOOSE]
        if not isinstance(choices, list) or not choices:
            raise wrong("expected a list of values, as in choose: [10, 20]", CHOOSE)
        if len({json.dumps(choice, sort_keys=True) for choice in choices}) < len(choices):
            raise wrong("a value is listed twice; keep one", CHOOSE)
        return Range(key, name, choices=tuple(choices))
    low, high, log = content["low"], content["high"], content.get(LOG, False)
    for bound, value in (("low", low), ("high", high)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not -MOST <= value <= MOST:
            raise wrong(f"got {json.dumps(value)}; expected a number between -{MOST:g} and {MOST:g}", bound)
    if not isinstance(log, bool):
        raise wrong(f"got {json.dumps(log)}; expected true or false", LOG)
    if low >= high:
        raise wrong(f"low is {low} and high is {high}; low has to be less", "low")
    if log and low <= 0:
        raise wrong(f"low is {low}; with log it has to be above 0", "low")
    return Range(key, name, low=low, high=high, log=log)


def _holder(content: Any, key: Key) -> Any:
    """The mapping or list that holds what stands at `key`."""
    for part in key[:-1]:
        content = content[part]
    return content
