"""One's own pictures: a search over a COCO-layout folder from Python, and the small detector at work.

    hsq teacher --dataset photos/ --image-size 160 --epochs 45 --cycles 1 --batch-size 8 --out photos.safetensors
    python examples/own_folder.py photos/ photos.safetensors runs/photos --target-ratio 10 --detect a.jpg

The folder holds ``annotations/instances_<split>.json`` beside ``<split>/`` with the images, for a training, a
validation and a test split; rewards look at the validation images alone, the table is measured on the test images.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torchvision.transforms.functional import to_tensor

from agents.explorer import Explorer
from agents.search import search
from agents.tables import print_table
from detectors.task import detection_task
from detectors.teacher import freeze, load_teacher
from hsq_env import load_hsq


def main(argv: Sequence[str] | None = None) -> tuple[dict[str, Any], list[dict[str, torch.Tensor]]]:
    """Search, print, detect; the content of ``result.json``, and boxes, labels, scores of every picture."""
    parser = argparse.ArgumentParser(description="Make a detector of one's own pictures small.")
    parser.add_argument("dataset", type=Path, help="a COCO-layout folder")
    parser.add_argument("teacher", type=Path, help="a file of hsq teacher")
    parser.add_argument("out", type=Path, help="a new folder for the run")
    parser.add_argument("--target-ratio", type=float, default=8.0, help="teacher bytes over student bytes")
    parser.add_argument("--algo", default="dqn", help="an agent or a baseline, see hsq search --help")
    parser.add_argument("--episodes", type=int, default=2, help="of the agent; more look further")
    parser.add_argument("--finetune-steps", type=int, default=100, help="of each plan that is measured at the end")
    parser.add_argument("--search-images", type=int, default=32, help="that rewards look at")
    parser.add_argument("--detect", type=Path, nargs="*", default=[], help="pictures to look at in the end")
    arguments = parser.parse_args(argv)

    images = {"search_images": arguments.search_images, "pool_images": 32, "calibration_images": 8}
    task = detection_task(arguments.dataset, teacher=arguments.teacher, **images)
    explorer = Explorer(
        arguments.algo, episodes=arguments.episodes, warm_start=("ilp",)
    )  # the program needs no repairs: quick
    result = search(
        task, arguments.out, explorer, arguments.target_ratio, finetune_steps=arguments.finetune_steps, alpha=0.0
    )
    print_table(result, arguments.out)

    model, spec = load_teacher(arguments.teacher)  # any network of the same architecture
    load_hsq(arguments.out / "model.hsq", model)
    freeze(model)
    found = [model([to_tensor(Image.open(picture).convert("RGB"))])[0] for picture in arguments.detect]
    for picture, detections in zip(arguments.detect, found, strict=True):
        sure = detections["labels"][detections["scores"] > 0.5].tolist()
        print(f"{picture}: {', '.join(spec.classes[label] for label in sure) or 'nothing'}")
    return result, found


if __name__ == "__main__":
    main()
