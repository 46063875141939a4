"""Trials on a Ray cluster: as many at once as it has room for; where a node dies, its trials are tried again."""

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from compressor.console import Console
from compressor.errors import StageError, UserError, first_line
from compressor.search.outcome import Outcome
from compressor.search.trial import Job, run_trial

RAY = "ray"
PORT = 10001  # of Ray's clients
DEATHS = 10  # of a trial; by then, one whose process dies has long failed (`MOST_STARTS`), if it began at all
POLL_SECONDS = 5.0  # until it is looked again how much room there is


def run_on_ray(
    next_job: Callable[[], Job | None],
    ended: Callable[[Outcome], None],
    *,
    on: str,
    cpus: int,
    gpus: float,
    console: Console,
) -> None:
    """Run jobs until there is none.

    Args:
        next_job: gives what to try next; None if nothing is left.
        ended: is told how each trial ended.
        on: `ray` (the cluster of this machine or of RAY_ADDRESS; without one, this machine), or `ray://HOST[:PORT]`.
        cpus: cores that a trial takes.
        gpus: GPUs that a trial takes.
        console: where it is said what died.

    Raises:
        UserError: Ray is not installed, there is no cluster, or no node is large enough for a trial.
    """
    with _cluster(on) as ray:
        remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)(_try)
        running: dict[Any, Job] = {}
        deaths: Counter[int] = Counter()
        while True:
            if not _slots(ray, cpus, gpus) and not running:
                raise UserError(f"no node of the Ray cluster has the {cpus} cores and {gpus:g} GPUs that a trial takes")
            while len(running) < _slots(ray, cpus, gpus) and (job := next_job()) is not None:
                running[remote.remote(job, Path.cwd())] = job
            if not running:
                return
            done, _ = ray.wait([*running], num_returns=1, timeout=POLL_SECONDS)
            for reference in done:
                job = running.pop(reference)
                try:
                    ended(ray.get(reference))
                except ray.exceptions.RayTaskError as error:
                    raise error.as_instanceof_cause() from error
                except ray.exceptions.RayError as error:
                    deaths[job.number] += 1
                    if deaths[job.number] == DEATHS:
                        raise StageError(f"trial {job.number} died {DEATHS} times: {first_line(error)}") from error
                    console.say(f"  trial {job.number}: its process or node died; it is tried again")
                    running[remote.remote(job, Path.cwd())] = job


def _try(job: Job, folder: Path) -> Outcome:
    """On a node: relative paths in a pipeline are meant from the folder in which the search was typed."""
    os.chdir(folder)
    return run_trial(job)


def _slots(ray: Any, cpus: int, gpus: float) -> int:
    """How many trials the nodes that are alive have room for together."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return sum(
        int(min(node.get("CPU", 0) // cpus, node.get("GPU", 0) // gpus if gpus else float("inf"))) for node in nodes
    )


@contextmanager
def _cluster(on: str) -> Iterator[Any]:
    """Ray, connected for as long as the block takes."""
    try:
        import ray
    except ImportError as error:
        raise UserError("--on ray needs Ray; pip install 'compressor[ray]'") from error
    address = None if on == RAY else on
    if address is not None and ":" not in address.removeprefix("ray://"):
        address = f"{address}:{PORT}"
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(f"--on {on}: there is no Ray cluster to use: {first_line(error)}") from error
    try:
        yield ray
    finally:
        ray.shutdown()
