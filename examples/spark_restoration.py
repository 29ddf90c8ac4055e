"""A denoiser at few bits, trained with SPARK, and the weight map that its policy has learned.

    python examples/spark_restoration.py runs/denoiser --plan uniform4 --steps 100

SPARK's policy looks at four maps of a picture (Laplacian variance, pixel variance, the student's error, its gap to the
teacher) and says place by place how strongly the student is pulled towards its teacher. It exists in training only:
the file is an ordinary DnCNN's. ``weights.png`` shows a test picture beside its weights, bright where above
average.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from agents.finetune import finetune
from hsq_env import Plan, Student, load_hsq
from hsq_env.distillation.policy import spread_over
from hsq_env.distillation.spark import Spark
from hsq_env.layer_info import trace_layers
from hsq_env.states import run
from restorers.task import RestorationTask, restoration_task


def weight_maps(task: RestorationTask, folder: Path, batch: Any) -> Tensor:
    """What the policy of a run says of a batch's places, (N, 8, 8), mean 1 over every image."""
    infos = trace_layers(task)
    student = Student(task, infos, activation_bits=8)
    student.apply(Plan.read(folder / "plan.json"))
    load_hsq(folder / "model.hsq", student.model)
    spark = Spark(learning=False)
    spark.load_state_dict(torch.load(folder / "spark.pt", weights_only=True))
    with torch.no_grad():
        both = (student.stages, task.stages(task.teacher))
        outputs, expected = (run(stages, {"images": batch.images}) for stages in both)
        errors = task.error_maps(outputs, batch)
        return spark.means(spark.signals(batch.images, errors, task.distilled(outputs), task.distilled(expected)))


def main(argv: Sequence[str] | None = None) -> tuple[dict[str, Any], Tensor]:
    """Train and draw; the content of ``result.json`` and the weight map of a test picture, (1, 8, 8)."""
    parser = argparse.ArgumentParser(description="Train a small denoiser with SPARK.")
    parser.add_argument("out", type=Path, help="a new folder")
    parser.add_argument("--dataset", default="photos", help="a folder of images; by default those that ship")
    parser.add_argument("--teacher", type=Path, help="of hsq teacher --restorer; by default the DnCNN that ships")
    parser.add_argument("--plan", default="uniform4", help="uniform8, uniform4, uniform2 or a plan.json")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--patch", type=int, default=48, help="side of training patches in pixels")
    parser.add_argument("--test-images", type=int, default=4)
    arguments = parser.parse_args(argv)

    settings = {"patch": arguments.patch, "test_images": arguments.test_images}
    task = restoration_task(arguments.dataset, arguments.teacher, network="dncnn", **settings)
    result = finetune(task, arguments.out, arguments.plan, "spark", arguments.steps)
    batch = task.evaluation("test")[0]
    weights = weight_maps(task, arguments.out, batch)
    height, width = batch.targets.shape[2:]
    deviations = spread_over(weights, height, width)[0] - 1
    shown = 0.5 + 0.5 * deviations / deviations.abs().max().clamp(min=1e-6)  # grey is the average
    picture = torch.cat([batch.targets[0].mean(dim=0), shown], dim=1)
    Image.fromarray((picture * 255).byte().cpu().numpy().astype(np.uint8)).save(arguments.out / "weights.png")
    print("\n".join(" ".join(f"{weight:.2f}" for weight in row) for row in weights[0].tolist()))
    return result, weights


if __name__ == "__main__":
    main()
