"""How far an agent's training is, for whoever shows it."""

import time
from contextlib import ExitStack
from typing import Any

from detectors.progress import Work, work


class TrainingProgress:
    """How far an agent's training is: by its episodes, its evaluations or its seconds, whichever ends it first.

    :param layers: steps of an episode
    :param episodes: that it may take; None for no limit
    :param evaluations: students that it may measure; None for no limit
    :param until: ``time.monotonic()`` at which it ends; None for no limit
    """

    seconds: float | None = None
    _most = 0.0

    def __init__(
        self, layers: int, source: str, episodes: int | None, evaluations: int | None, until: float | None
    ) -> None:
        self.layers, self.source, self.episodes, self.evaluations = layers, source, episodes, evaluations
        self.until = until
        self.seconds = None if until is None else max(until - time.monotonic(), 1e-9)
        self._most = 0.0
        self.finished = self.measured = self.steps = 0
        self._open: ExitStack | None = None
        self._training = self._episode = Work("")

    def __call__(self, info: dict[str, Any]) -> None:
        """A step."""
        if self._open is None:
            self._open = ExitStack()
            self._training = self._open.enter_context(
                work(f"{self.source}, episode", self.episodes, self.finished, until=self.until)
            )
            self._training.share = self._training.begun = self.share
            self._episode = self._open.enter_context(work("layer", self.layers))
        self.measured += info.get("measured", 0)
        self.steps = self.steps % self.layers + 1
        if self.steps == 1:
            self._episode.started = time.monotonic()
        self._episode.done = self.steps
        if "plan" in info:
            self.finished, self.steps = self.finished + 1, 0
        self._training.done, self._training.share = self.finished, self.share
        self._episode.changed()

    @property
    def share(self) -> float:
        """Of the training that is done, in [0, 1]: of its episodes, evaluations or seconds, whichever is more."""
        passed = 0.0 if self.until is None or self.seconds is None else self.seconds - (self.until - time.monotonic())
        limits = (
            (self.finished + self.steps / self.layers, self.episodes),
            (self.measured, self.evaluations),
            (passed, self.seconds),
        )
        self._most = max([self._most, *(min(done / limit, 1.0) for done, limit in limits if limit)])
        return self._most  # several workers' steps of an episode begin anew when one of them finishes

    def close(self) -> None:
        """It has ended."""
        if self._open is not None:
            self._open.close()
            self._open = None

    def __enter__(self) -> "TrainingProgress":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        left = None if self.until is None else self.until - time.monotonic()
        return {**self.__dict__, "until": left, "_open": None, "_training": Work(""), "_episode": Work("")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.until = None if self.until is None else self.until + time.monotonic()
