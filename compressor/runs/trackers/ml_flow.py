"""MLflow: a run with its curves, figures, report and model; installed by the extra `mlflow`."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compressor.errors import UserError, first_line
from compressor.runs.layout import LOCK, SEEDS
from compressor.runs.trackers.figures import figures
from compressor.tracking import Tracker

STORE = "MLFLOW_TRACKING_URI"  # MLflow's own variable
MAX_VALUE_LENGTH = 500  # characters of a parameter


class MLflow(Tracker):
    """Logs to `MLFLOW_TRACKING_URI`, or else to `mlflow.db` and `mlartifacts` beside the run's folder.

    The experiment is the pipeline's name. `mlflow ui --backend-store-uri sqlite:///runs/mlflow.db` shows it.
    """

    status = "FINISHED"  # in MLflow's words

    def begin(self, folder: Path, pipeline: Mapping[str, Any]) -> None:
        try:
            from mlflow import MlflowClient
            from mlflow.exceptions import MlflowException
        except ImportError as error:
            raise UserError("tracking: mlflow is not installed; run `pip install 'compressor[mlflow]'`") from error
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)  # they tell of every table that they make
        own = folder.absolute()
        run = own  # or the one that has this as one of its seeds
        if own.parent.name == SEEDS and (own.parents[1] / LOCK).exists():
            run = own.parents[1]
        beside = run.parent
        given = os.environ.get(STORE)
        for each in () if given else (beside / "mlflow.db", beside / "mlartifacts"):
            if each.is_symlink():
                raise UserError(f"tracking: {each} is a link, which MLflow would write through; remove it")
        store, artifacts = (
            (given, None) if given else (f"sqlite:///{beside}/mlflow.db", (beside / "mlartifacts").as_uri())
        )
        try:
            self.client: Any = MlflowClient(store)
            found = self.client.get_experiment_by_name(pipeline["name"])
            experiment = found.experiment_id if found else self.client.create_experiment(pipeline["name"], artifacts)
            self.run_id = self.client.create_run(experiment, run_name=str(own.relative_to(beside))).info.run_id
        except MlflowException as error:
            raise UserError(f"tracking: MLflow cannot log to {store}: {first_line(error)}") from error
        self.client.log_param(self.run_id, "seed", pipeline["seed"])
        for stage in pipeline["stages"]:
            for name, value in stage.items():
                self.client.log_param(self.run_id, f"{stage['id']}.{name}", str(value)[:MAX_VALUE_LENGTH])

    def on_epoch(self, stage: str, point: Mapping[str, float]) -> None:
        for name in ("loss", "validation_accuracy", "learning_rate"):
            self.client.log_metric(self.run_id, f"{stage}/{name}", point[name], step=int(point["epoch"]))

    def on_row(self, row: Mapping[str, Any]) -> None:
        for name, value in figures(row).items():
            self.client.log_metric(self.run_id, f"{row['id']}/{name}", value)

    def on_artifact(self, path: Path) -> None:
        self.client.log_artifact(self.run_id, str(path))

    def on_failure(self, error: BaseException) -> None:
        self.status = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"

    def end(self) -> None:
        self.client.set_terminated(self.run_id, self.status)
