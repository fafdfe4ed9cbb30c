"""Experiment trackers: where people look at runs while they train. None is asked unless params.yaml names it.

A tracker is told the whole history each time and sends what it does not have, so that a run which was stopped, killed
or evaluated later is one run there, without an epoch twice or missing. What goes wrong with it stops no training.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from charm.runtime.errors import UserError, first_line
from pipeline.settings.params import Params
from pipeline.settings.recipes import flatten
from pipeline.training.state import Record
from pipeline.work.store import repository_path

RUN = "run.txt"  # in the folder that `train` writes: the name of the run, the beginning of its fingerprint
RUN_LENGTH = 16
_PROJECT = "charm"


class Tracker:
    """A tracker that sends nothing, for `tracker: none`, and the base of the others."""

    epochs = 0  # that the tracker has

    def add_history(self, history: Sequence[Record]) -> None:
        """Sends the epochs that the tracker does not have."""
        with _only_warning():
            for record in history[self.epochs :]:
                self._send({name: value for name, value in record.items() if name != "epoch"}, self.epochs + 1)
                self.epochs += 1

    def add_metrics(self, metrics: dict[str, Any]) -> None:
        """Sends the numbers among the metrics of the test images, as `test_<name>`."""
        numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
        with _only_warning():
            self._send({f"test_{name}": float(value) for name, value in numbers.items()}, None)

    def close(self) -> None:
        with _only_warning():
            self._close()

    def _send(self, values: dict[str, float], epoch: int | None) -> None:
        """Sends values of an epoch, or of the whole run (None)."""

    def _close(self) -> None:
        pass


class TensorBoard(Tracker):
    """Writes event files under runs/tensorboard/<run>, one of training and one of evaluation; resumed, anew."""

    def __init__(self, run: str, part: str, params: Params) -> None:
        import tensorboard  # noqa: F401  # names what is missing
        from torch.utils.tensorboard import SummaryWriter

        folder = _make_folder() / "tensorboard" / run
        for old in folder.glob(f"*.{part}"):
            old.unlink()
        self._writer = SummaryWriter(folder, filename_suffix=f".{part}")
        self._writer.add_text("params", f"```\n{json.dumps(asdict(params), indent=2)}\n```")

    def _send(self, values: dict[str, float], epoch: int | None) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, epoch or 0)
        self._writer.flush()

    def _close(self) -> None:
        self._writer.close()


class WandB(Tracker):
    """Sends to Weights & Biases, or with WANDB_MODE=offline to runs/wandb, for `wandb sync`."""

    def __init__(self, run: str, part: str, params: Params) -> None:
        import wandb

        given = {"id": run, "name": run, "config": asdict(params), "dir": _make_folder()}
        self._run = wandb.init(project=_PROJECT, resume="allow", **given)
        self.epochs = max(0, self._run.starting_step - 1)

    def _send(self, values: dict[str, float], epoch: int | None) -> None:
        if epoch is None:
            self._run.summary.update(values)
        else:
            self._run.log(values, step=epoch)

    def _close(self) -> None:
        self._run.finish()


class MLflow(Tracker):
    """Sends to the server that MLFLOW_TRACKING_URI names, or without it to runs/mlflow.db."""

    def __init__(self, run: str, part: str, params: Params) -> None:
        from mlflow import MlflowClient

        self._client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{_make_folder()}/mlflow.db")
        found = self._client.get_experiment_by_name(_PROJECT)
        experiment = found.experiment_id if found else self._client.create_experiment(_PROJECT)
        runs = self._client.search_runs([experiment], f"attributes.run_name = '{run}'")
        self._id = (runs[0] if runs else self._client.create_run(experiment, run_name=run)).info.run_id
        self.epochs = len(self._client.get_metric_history(self._id, "train_loss"))
        for name, value in {} if runs else flatten(asdict(params)).items():
            self._client.log_param(self._id, name, value)

    def _send(self, values: dict[str, float], epoch: int | None) -> None:
        for name, value in values.items():
            self._client.log_metric(self._id, name, value, step=epoch)

    def _close(self) -> None:
        self._client.set_terminated(self._id)


def _make_folder() -> Path:
    """Makes the folder of trackers that write files: in the repository, also from an experiment's copy of it."""
    folder = repository_path("runs").resolve()
    folder.mkdir(exist_ok=True)
    return folder


TRACKERS: dict[str, Callable[[str, str, Params], Tracker]] = {
    "none": lambda run, part, params: Tracker(),
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "mlflow": MLflow,
}


def open_tracker(run: str, part: str, params: Params) -> Tracker:
    """Opens the tracker that params.yaml names, at a run that it may have already; `part` is "train" or "evaluate".

    Raises:
        UserError: the tracker cannot be opened; said before any work.
    """
    kind = params.hardware.tracker
    try:
        return TRACKERS[kind](run, part, params)
    except ModuleNotFoundError:
        raise
    except Exception as error:  # of many kinds, as libraries and services have them
        raise UserError(f"params.yaml: hardware.tracker: {kind} cannot be opened: {first_line(error)}") from error


@contextlib.contextmanager
def _only_warning() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        print(f"warning: the tracker has not taken what was sent: {first_line(error)}", flush=True)
