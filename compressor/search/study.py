"""What has been tried and what to try next: an Optuna study in SQLite, which any later process goes on with."""

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compressor.errors import UserError
from compressor.runs import SEARCH
from compressor.search.outcome import Outcome
from compressor.search.settings import Search
from compressor.search.space import Space
from compressor.storage import files

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

NAME = "search"
NUMBER, SECONDS, DIGEST = "number", "seconds", "digest"
DRAWN = 10  # at random, before TPE has something to go by
POPULATION = 12  # of NSGA-II: trials take minutes or hours, so a generation of Optuna's 50 would often be the only one
REPEATS = 20  # of what was tried, before one that was not is drawn
ENUMERATED = 100_000  # pipelines of a space that are gone through for that
OUT_OF_CONTRACT = 1e6  # more than any share of the reference's latency
STOPPED = 2 * OUT_OF_CONTRACT  # what could not win ranks behind what was out of the contract


class Study:
    """The trials of one search, in its folder. One process uses it at a time.

    Raises:
        UserError: the folder holds another search.
    """

    def __init__(self, folder: Path, search: Search, space: Space) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.search, self.space = search, space
        self._study = optuna.create_study(
            storage=f"sqlite:///{folder / SEARCH}",
            study_name=NAME,
            directions=["minimize"] if search.goal.max_drop is not None else ["minimize", "maximize"],
            load_if_exists=True,
        )
        digest = files.digest_json(
            [search.model_dump(mode="json", include={"goal", "sampler", "seed"}), space.source.content]
        )
        if self._study.user_attrs.setdefault(DIGEST, digest) != digest:
            raise UserError(f"{folder} holds another search; choose another --out, or remove it")
        self._study.set_user_attr(DIGEST, digest)
        for trial in self._study.get_trials(deepcopy=False):
            if trial.state == optuna.trial.TrialState.RUNNING and NUMBER not in trial.user_attrs:
                self._study.tell(trial.number, state=optuna.trial.TrialState.FAIL)  # killed while it was drawn

    @property
    def begun(self) -> dict[int, dict[str, Any]]:
        """The values of every trial, by its number."""
        return {trial.user_attrs[NUMBER]: self._values(trial.params) for trial in self._trials()}

    @property
    def unfinished(self) -> list[int]:
        """The trials that have begun and not ended, which a process may have left behind."""
        return [trial.user_attrs[NUMBER] for trial in self._trials() if not trial.state.is_finished()]

    @property
    def seconds(self) -> float:
        """For how long it was searched, in all sessions."""
        return float(self._study.user_attrs.get(SECONDS, 0.0))

    def spend(self, seconds: float) -> None:
        """Note that it was searched for so much longer."""
        self._study.set_user_attr(SECONDS, self.seconds + seconds)

    def begin(self) -> int | None:
        """The number of a new trial, from 0, of values that were not tried; None if all were."""
        tried = {_text(values) for values in self.begun.values()}
        number = len(tried)
        for attempt in itertools.count():
            if number >= self.space.size:
                return None
            trial = self._ask(number, attempt, tried)
            if _text(self._values(trial.params)) not in tried:
                trial.set_user_attr(NUMBER, number)
                return number
            self._study.tell(trial, state=_failed())
        raise AssertionError("counting has no end")

    def end(self, outcome: Outcome) -> None:
        """Note how a trial ended, so that the next ones are chosen by that."""
        trial = next(each for each in self._trials() if each.user_attrs[NUMBER] == outcome.number)
        if trial.state.is_finished():
            return
        values = [value for value in self._aims(outcome) if value is not None]
        self._study.sampler = self._sampler(outcome.number, 0)
        if outcome.state == "failed" or len(values) < len(self._study.directions):
            self._study.tell(trial.number, state=_failed())
        else:
            self._study.tell(trial.number, values=values)

    def _aims(self, outcome: Outcome) -> list[float | None]:
        """What is minimized and maximized; out of the contract, every trial is worse than all within it."""
        share, goal = outcome.latency_share, self.search.goal
        if goal.max_drop is None:
            return [share, outcome.accuracy]
        if outcome.shipped is None:
            return [None if share is None else STOPPED + share]
        beyond = outcome.drop(goal) - goal.max_drop
        return [share if beyond <= 0 else OUT_OF_CONTRACT + beyond]

    def importances(self, outcomes: Sequence[Outcome]) -> dict[str, dict[str, float]]:
        """How much of the variance of accuracy and of latency each range explains (fANOVA, Hutter et al. 2014).

        Empty where too few trials are complete to say.
        """
        import optuna

        complete = [each for each in outcomes if each.shipped is not None]
        found = {}
        for what, values in (
            ("accuracy", [each.accuracy for each in complete]),
            ("latency", [each.latency_share for each in complete]),
        ):
            if len({*values}) < 2:
                continue
            study = optuna.create_study()
            distributions = {each.name: each.distribution for each in self.space.ranges}
            for each, value in zip(complete, values, strict=True):
                params = {r.name: r.sample_of(each.values[r.name]) for r in self.space.ranges}
                study.add_trial(optuna.create_trial(params=params, distributions=distributions, value=value))
            evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
            found[what] = dict(optuna.importance.get_param_importances(study, evaluator=evaluator))
        return found

    def _ask(self, number: int, attempt: int, tried: set[str]) -> Any:
        """A trial whose values may have been tried before; after many of those, one whose values were not."""
        self._study.sampler = self._sampler(number, attempt)
        if attempt >= REPEATS and self.space.size <= ENUMERATED:
            every = itertools.product(*(each.all_values for each in self.space.ranges))
            names = [each.name for each in self.space.ranges]
            left = [
                values for values in (dict(zip(names, one, strict=True)) for one in every) if _text(values) not in tried
            ]
            picked = left[int(np.random.default_rng([self.search.seed, number]).integers(len(left)))]
            self._study.enqueue_trial({each.name: each.sample_of(picked[each.name]) for each in self.space.ranges})
        return self._study.ask({each.name: each.distribution for each in self.space.ranges})

    def _sampler(self, number: int, attempt: int) -> "BaseSampler":
        """The sampler of one trial: what it draws depends on the trials before, and not on when a process began."""
        from optuna.samplers import NSGAIISampler, RandomSampler, TPESampler

        seed = int(np.random.SeedSequence([self.search.seed, number, attempt]).generate_state(1)[0])
        if self.search.sampler == "random":
            return RandomSampler(seed=seed)
        if self.search.sampler == "nsga2":
            return NSGAIISampler(seed=seed, population_size=POPULATION)
        return TPESampler(seed=seed, n_startup_trials=DRAWN)

    def _trials(self) -> list["FrozenTrial"]:
        return [trial for trial in self._study.get_trials(deepcopy=False) if NUMBER in trial.user_attrs]

    def _values(self, params: Mapping[str, Any]) -> dict[str, Any]:
        return {each.name: each.value_of(params[each.name]) for each in self.space.ranges}


def _failed() -> Any:
    from optuna.trial import TrialState

    return TrialState.FAIL


def _text(values: Mapping[str, Any]) -> str:
    return json.dumps(values, sort_keys=True)
