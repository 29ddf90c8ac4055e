"""A budget of evaluations that several workers share to its end."""

from stable_baselines3.common.callbacks import BaseCallback


class SharedEvaluations(BaseCallback):
    """Divides what is left among the workers anew whenever one of them has used up its part.

    Parts that were fixed would leave unspent what workers that are not first to the end have left. Workers step
    together, so that in the end less than one evaluation per worker is left.

    :param left: evaluations of the training, each of whose environments has an ``EvaluationBudget`` around it
    """

    def __init__(self, left: int) -> None:
        super().__init__()
        self.left = left
        self._parts: list[int] = []

    def _on_training_start(self) -> None:
        self._divide()

    def on_new_workers(self) -> None:
        """They know of no part yet."""
        self._divide()

    def _on_step(self) -> bool:
        lost = False
        for worker, info in enumerate(self.locals["infos"]):
            self.left -= info.get("measured", 0)
            self._parts[worker] -= info.get("measured", 0)
            lost = lost or bool(info.get("worker_lost"))
        if lost or (min(self._parts) <= 0 < self.left):
            self._divide()
        return True

    def _divide(self) -> None:
        count = self.training_env.num_envs
        part, more = divmod(max(0, self.left), count)
        self._parts = [part + (worker < more) for worker in range(count)]
        for worker, evaluations in enumerate(self._parts):
            self.training_env.env_method("allow", evaluations, indices=worker)
