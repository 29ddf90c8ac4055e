"""Services that keep the numbers of searches: Weights & Biases and MLflow, beside TensorBoard's files.

Each may fail at any time; ``agents.tracking`` sees to it that no search does. Their packages are imported by the search
that asks for them, and by nothing else.
"""

import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import KVWriter, Logger, configure

from agents.run_folder import RunFolder

FORMATS = ["tensorboard", "csv"]
PROJECT = "hsq"  # of W&B, experiment of MLflow, where the environment names none
FINISH_SECONDS = 120  # that W&B may take to send what is left; it stays on disk besides
PAUSE_SECONDS = 300.0  # before MLflow's service is tried again
BATCH = 1000  # metrics that MLflow takes at once
TAG = "hsq_search"  # by which MLflow finds a search again
LONGEST = 6000  # characters that MLflow takes of a setting


class TensorBoard:
    """What every search writes: TensorBoard's files and progress.csv in its folder.

    :param folder: of the run
    :param record: see ``agents.tracking.record_of``
    :param say: prints a line
    :param attempt: calls a function with arguments, whatever goes wrong in it
    """

    package = "tensorboard"

    def __init__(
        self,
        folder: RunFolder,
        record: Mapping[str, Any],
        say: Callable[[str], None],
        attempt: Callable[..., object],
    ) -> None:
        self.folder, self.record, self.say, self.attempt = folder, record, say, attempt

    @staticmethod
    def place() -> dict[str, Any]:
        """What a resumed search must know beside its name to find the tracker's run again."""
        return {}

    def open(self, settings: Mapping[str, Any], resumed: bool) -> None:
        """Begin a run, or go on with it."""

    def logger(self) -> Logger:
        """For an agent of Stable-Baselines3."""
        return configure(str(self.folder.new_logs()), FORMATS)

    def agent(self, agent: BaseAlgorithm) -> None:
        """The agent is about to begin."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Of a finished episode."""

    def summarize(self, values: Mapping[str, float]) -> None:
        """The final table."""

    def close(self, status: str) -> None:
        """:param status: "FINISHED", "KILLED" or "FAILED" """


class WeightsAndBiases(TensorBoard):
    """W&B reads TensorBoard's files itself; its own lie in the run's folder, in ``wandb/``.

    ``WANDB_MODE``, ``WANDB_PROJECT`` and ``WANDB_ENTITY`` count. Without a key or a network the run is kept on disk.
    """

    package = "wandb"
    _run: Any = None

    def open(self, settings: Mapping[str, Any], resumed: bool) -> None:
        """See ``TensorBoard``."""
        os.environ.setdefault("WANDB_SILENT", "true")  # what matters is said here
        import wandb

        given: dict[str, Any] = {
            "project": os.environ.get("WANDB_PROJECT", PROJECT),
            "dir": str(self.folder.path),
            "id": self.record["id"],
            "name": self.folder.path.name,
            "config": dict(settings),
            "allow_val_change": True,  # a resumed search has another command
            "sync_tensorboard": True,
            "settings": wandb.Settings(console="off", finish_timeout=FINISH_SECONDS),
        }
        try:
            if os.environ.get("WANDB_MODE", "online") == "online":
                if not wandb.login(prompt=False):  # nobody may be there to answer
                    raise RuntimeError("no API key is configured, see wandb login")
                given["resume"] = "allow" if resumed else None
            self._run = wandb.init(**given)
        except Exception as error:  # of the network, the service, the key
            self.say(
                f"W&B cannot be reached ({reason_of(error)}): send {self.folder.path / 'wandb'} with wandb sync later."
            )
            self._unpatch()
            self._run = wandb.init(**{**given, "resume": None, "mode": "offline"})
        self._run.define_metric("episode/*", step_metric="episode/number")
        if not self._run.offline and self._run.url:
            self.say(f"tracked at {self._run.url}")

    def logger(self) -> Logger:
        """See ``TensorBoard``: W&B hears of the files as they are opened, if it can."""
        logs = str(self.folder.new_logs())
        try:
            return configure(logs, FORMATS)
        except Exception as error:
            self._unpatch()
            self.attempt(_raise, error)
            return configure(logs, FORMATS)

    def agent(self, agent: BaseAlgorithm) -> None:
        """Its hyperparameters go to the run's settings."""
        from wandb.integration.sb3 import WandbCallback

        if self._run is not None:
            WandbCallback(log=None).init_callback(agent)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """See ``TensorBoard``."""
        if self._run is not None:
            self._run.log({"episode/number": step, **values})

    def summarize(self, values: Mapping[str, float]) -> None:
        """See ``TensorBoard``."""
        if self._run is not None:
            self._run.summary.update(dict(values))

    def close(self, status: str) -> None:
        """See ``TensorBoard``."""
        run, self._run = self._run, None
        try:
            if run is not None:
                run.finish(exit_code=int(status != "FINISHED"))
        finally:
            self._unpatch()

    @staticmethod
    def _unpatch() -> None:
        """TensorBoard's writers as they were before ``sync_tensorboard``."""
        import wandb
        from wandb.integration.tensorboard import unpatch

        if wandb.patched["tensorboard"]:
            unpatch()


class MLflow(TensorBoard):
    """To the server or file that ``MLFLOW_TRACKING_URI`` names, or else MLflow's own default, ``mlflow.db`` here.

    What a service that is down does not take is kept and sent later.
    """

    package = "mlflow"

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._client: Any = None
        self._run_id: str | None = None
        self._settings: Mapping[str, Any] = {}
        self._waiting: list[Any] = []
        self._not_before = 0.0
        # unless the user says otherwise, a service that is down stops a search for seconds and not for four minutes
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")

    @staticmethod
    def place() -> dict[str, Any]:
        """The default depends on the folder in which the search was begun."""
        import mlflow

        return {} if mlflow.is_tracking_uri_set() else {"uri": mlflow.get_tracking_uri()}

    def open(self, settings: Mapping[str, Any], resumed: bool) -> None:
        """See ``TensorBoard``."""
        self._settings = settings
        self._send()

    def logger(self) -> Logger:
        """See ``TensorBoard``."""
        logger = super().logger()
        logger.output_formats.append(MLflowWriter(lambda values, step: self.attempt(self.log, values, step)))
        return logger

    def log(self, values: Mapping[str, float], step: int) -> None:
        """See ``TensorBoard``."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)  # milliseconds
        self._waiting += [Metric(name, float(value), now, step) for name, value in values.items()]
        if time.monotonic() >= self._not_before:
            self._send()

    def summarize(self, values: Mapping[str, float]) -> None:
        """See ``TensorBoard``."""
        self._not_before = 0.0
        self.log(values, 0)

    def close(self, status: str) -> None:
        """See ``TensorBoard``."""
        self._send()
        self._client.set_terminated(self._run_id, status)

    def _send(self) -> None:
        """Everything that waits."""
        self._not_before = time.monotonic() + PAUSE_SECONDS  # if this fails
        run = self._run()
        while self._waiting:
            self._client.log_batch(run, self._waiting[:BATCH])
            del self._waiting[:BATCH]
        self._not_before = 0.0

    def _run(self) -> str:
        """The id of the search's run, which is found again or begun."""
        if self._run_id is not None:
            return self._run_id
        import mlflow
        from mlflow.entities import Param

        uri = None if mlflow.is_tracking_uri_set() else self.record.get("uri")
        self._client = client = mlflow.MlflowClient(uri)
        name, tag = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT), self.record["id"]
        found = client.get_experiment_by_name(name)
        experiment = client.create_experiment(name) if found is None else found.experiment_id
        runs = client.search_runs([experiment], f"tags.{TAG} = '{tag}'")
        run = runs[0] if runs else client.create_run(experiment, run_name=self.folder.path.name, tags={TAG: tag})
        found_id = str(run.info.run_id)
        if run.data.params:  # they stay those that the search was begun with
            client.update_run(found_id, "RUNNING")
        else:
            params = [Param(key, str(value)[:LONGEST]) for key, value in flat(self._settings).items()]
            client.log_batch(found_id, params=params)
        self.say(f"tracked in MLflow's experiment '{name}', run {found_id}")
        self._run_id = found_id
        return found_id


class MLflowWriter(KVWriter):
    """An output of Stable-Baselines3's logger.

    :param log: takes numbers by name, and the step that they belong to
    """

    def __init__(self, log: Callable[[dict[str, float], int], Any]) -> None:
        self._log = log

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Hand on what is a number and not meant to be left out."""
        shown = {k: v for k, v in key_values.items() if "mlflow" not in (key_excluded.get(k) or ())}
        self._log({k: float(v) for k, v in shown.items() if isinstance(v, int | float | np.number)}, step)

    def close(self) -> None:
        """The run goes on after the training."""


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by names such as ``versions.torch``."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def reason_of(error: Exception) -> str:
    """An error in one line."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _raise(error: Exception) -> None:
    raise error
