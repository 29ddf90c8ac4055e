"""How far the trials of a sweep are, for whoever shows it."""

from collections.abc import Callable
from typing import Any

from ray import tune

from detectors.progress import Work


class TrialProgress(tune.Callback):
    """Tells how far the trials are.

    :param going: the work of which each is one
    :param episodes: of each, where their number ends them
    :param name_of: makes a name of what a trial was given
    """

    def __init__(self, going: Work, episodes: int | None, name_of: Callable[[dict[str, Any]], str]) -> None:
        self.going, self.episodes, self.name_of = going, episodes, name_of
        self.running: dict[str, int] = {}  # episodes by trial
        self.ended = 0
        self.last = ""  # what was last found that is better than before

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **more: Any
    ) -> None:
        """See Ray."""
        self.running[trial.trial_id] = result["episodes"]
        if "ratio" in result:
            figures = f"best {result['ratio']:.2f}x, accuracy {result['accuracy']:.4f}"
            self.last = f"{self.name_of(trial.config)}: {figures}"
        self._tell()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **more: Any) -> None:
        """See Ray."""
        self.running.pop(trial.trial_id, None)
        self.ended += 1
        self._tell()

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **more: Any) -> None:
        """See Ray."""
        self.on_trial_complete(iteration, trials, trial)

    def _tell(self) -> None:
        begun = [min(played / self.episodes, 1.0) for played in self.running.values()] if self.episodes else []
        assert self.going.total
        self.going.done, self.going.share = self.ended, min((self.ended + sum(begun)) / self.going.total, 1.0)
        running = f"{len(self.running)} running, {sum(self.running.values())} episodes" if self.running else ""
        self.going.say("; ".join(part for part in (running, self.last) if part))
