"""What tells before the long fine-tuning how good a plan will be after it?

python -m benchmarks.judging

Plans around the integer programs' at 14x are played in the environment with its brief repair; noted are the mAP on the
search images and every term of the distillation loss, per layer tables included. Then each plan is fine-tuned at length
from the teacher's weights and its mAP measured on 400 training images that neither the brief nor the calibration pool
holds: images of the test split have no say in how students are judged. Correlations over plans go to
``benchmarks/results/judging.json``, which is written after every plan.
"""

from typing import Any

import numpy as np
import torch
from torch import nn

import hsq_env  # noqa: F401 - before torch
from agents.baselines.plans import byte_limit, integer_program
from agents.finalists import finetuned_student
from benchmarks.record import write_result
from detectors.detection import detections_map
from detectors.task import detection_task
from hsq_env.distillation import AKD, JUDGING_WEIGHTS
from hsq_env.env import HSQEnv
from hsq_env.states import run
from hsq_env.student import evaluate

PLANS, TARGET, FINETUNE_STEPS = 16, 14.0, 100
HELD_BACK = slice(600, 1000)  # of the training images
NOISE = (0.0, 0.3, 0.6, 1.0)  # logarithmic, of the sensitivities that a plan is made from


class Judge:
    """The tasks and what is measured on them."""

    def __init__(self) -> None:
        self.task = detection_task(search_images=32, pool_images=64, calibration_images=16)
        self.wide = detection_task(search_images=128, pool_images=8, calibration_images=8)
        train = self.task._train
        self.held_back = train.only(train.image_ids[HELD_BACK])
        self.batches = self.held_back.batches(8)
        self.env = HSQEnv(self.task, reward="divergence", alpha=0.0, beta=1.0, target_ratio=TARGET)

    @torch.no_grad()
    def terms(self, student: Any) -> dict[str, float]:
        """Means over the search images of the distillation loss's terms, unweighted."""
        teacher, rows = self.wide.stages(self.wide.teacher), []
        for batch in self.wide.evaluation("search"):
            expected = self.wide.distilled(run(teacher, {"images": batch.images}))
            found = self.wide.distilled(run(student.stages, {"images": batch.images}))
            rows.append({name: term.item() for name, term in AKD().terms(found, expected).items()})
        return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}

    @torch.no_grad()
    def held_back_map(self, model: nn.Module) -> float:
        """mAP on training images that nothing else looks at."""
        stages = self.task.stages(model)
        found = [self.task.predictions(run(stages, {"images": b.images}), b) for b in self.batches]
        return detections_map(self.held_back, self.batches, found)

    def measure(self, choices: list[int], seed: int) -> dict[str, Any]:
        """A plan before and after the long fine-tuning."""
        env = self.env
        env.reset()
        for choice in choices:
            info = env.step(choice)[4]
        before = {
            **self.terms(env.student),
            "search_map": evaluate(self.wide, env.student.stages, "search"),
            "divergence": info["divergence"],
            "sensitivities": float(env.sensitivities[range(len(choices)), choices].sum()),
            "repaired_sensitivities": float(env.repaired_sensitivities[range(len(choices)), choices].sum()),
        }
        self.task.seed = seed
        tuned = finetuned_student(env, info["plan"], FINETUNE_STEPS, f"plan {seed}")
        return {"before": before, "map": self.held_back_map(tuned.model), "ratio": info["ratio"]}


def correlations(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Of everything known before with the mAP after, and of the weighted sum that students are judged by."""
    after = np.array([row["map"] for row in rows])
    known = {name: np.array([row["before"][name] for row in rows]) for name in rows[0]["before"]}
    known["judging_weights"] = np.sum([w * known[name] for name, w in JUDGING_WEIGHTS.items() if name in known], axis=0)
    return {name: float(np.corrcoef(values, after)[0, 1]) for name, values in known.items()}


def main() -> None:
    """Measure and write."""
    torch.set_num_threads(1)
    judge, rng, rows = Judge(), np.random.default_rng(0), []
    env = judge.env
    for number in range(PLANS):
        table = (env.sensitivities, env.repaired_sensitivities)[number % 2]
        noise = np.exp(NOISE[number // 2 % len(NOISE)] * rng.standard_normal(table.shape))
        choices = [int(i) for i in integer_program(table * noise, env.sizes, byte_limit(env))]
        rows.append(judge.measure(choices, number))
        print(number, rows[-1]["map"], rows[-1]["before"], flush=True)
        if number > 2:
            write_result("judging", {"correlations": correlations(rows), "plans": rows})


if __name__ == "__main__":
    main()
