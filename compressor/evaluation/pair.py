"""Two networks that are timed against each other."""

from dataclasses import dataclass, field

from compressor.evaluation.engines.base import Subject, engine_of
from compressor.evaluation.recording import Recording, compare
from compressor.evaluation.setting import Setting


@dataclass
class Pair:
    """A candidate and the baseline that it is timed against, both opened anew for every session.

    In a process that has allocated much, what is opened first can be 2% slower than the same file opened second. So
    they take turns at it, and an interval over several sessions holds both.
    """

    candidate: Subject
    baseline: Subject
    setting: Setting
    sessions: int = field(default=0, init=False)

    def __call__(self) -> Recording:
        """Time both in one more session.

        Raises:
            ArtifactError: a file cannot be opened or timed.
        """
        engine, baseline_first = engine_of(self.setting.engine), self.sessions % 2 == 1
        order = (self.baseline, self.candidate) if baseline_first else (self.candidate, self.baseline)
        opened = [engine.open(subject, self.setting) for subject in order]
        candidate, baseline = reversed(opened) if baseline_first else opened
        self.sessions += 1
        return compare(candidate.seconds, baseline.seconds, self.setting, candidate.on_cpu)
