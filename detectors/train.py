"""Teacher training: AdamW with a one-cycle schedule, resumable, the best epoch by search-split mAP kept."""

import copy
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from detectors.architecture import architecture_of
from detectors.backbone import fold_batch_norm
from detectors.batches import Batch, make_batch
from detectors.checkpoint import going_on_from, gradient_step, restore_checkpoint, save_checkpoint
from detectors.checks import check_counts, check_learning_rate
from detectors.coco import CocoSplit
from detectors.detection import evaluate_detector
from detectors.errors import InputError
from detectors.files import write_atomically
from detectors.progress import each, say, work
from detectors.teacher import DetectorSpec, teacher_bytes

CYCLE_DECAY = 0.5  # of the peak learning rate from cycle to cycle
GRADIENT_CLIP = 10.0  # norm; large boxes give large early gradients


def augmented_batch(
    split: CocoSplit, image_ids: list[int], rng: np.random.Generator, vertical_flip: bool = False
) -> Batch:
    """A training batch with random horizontal (and vertical) flips, brightness and contrast."""
    pixels, targets = [], []
    for image_id in image_ids:
        image, target = split.pixels(image_id).float(), dict(split.target(image_id))
        height, width = image.shape[1:]
        boxes = target["boxes"].clone()
        if rng.random() < 0.5:
            image, boxes[:, [0, 2]] = image.flip(2), width - boxes[:, [2, 0]]
        if vertical_flip and rng.random() < 0.5:
            image, boxes[:, [1, 3]] = image.flip(1), height - boxes[:, [3, 1]]
        gain, shift = rng.uniform(0.85, 1.15), rng.uniform(-15, 15)
        image = ((image - 128) * gain + 128 + shift).clamp(0, 255).round().to(torch.uint8)
        pixels.append(image)
        targets.append({**target, "boxes": boxes})
    return make_batch(pixels, targets, image_ids, split.preparation)


def _epoch(split: CocoSplit, batch_size: int, rng: np.random.Generator, vertical_flip: bool) -> Iterator[Batch]:
    order = rng.permutation(split.image_ids)
    for i in range(0, len(order) - batch_size + 1, batch_size):
        yield augmented_batch(split, [int(x) for x in order[i : i + batch_size]], rng, vertical_flip)


def _folded_copy(model: nn.Module) -> nn.Module:
    return fold_batch_norm(copy.deepcopy(model).to(memory_format=torch.contiguous_format))


def train_teacher(
    splits: dict[str, CocoSplit],
    spec: DetectorSpec,
    out: str | Path,
    epochs: int = 20,
    cycles: int = 1,
    batch_size: int = 16,
    learning_rate: float = 1e-3,  # the peak of the cycle
    weight_decay: float = 1e-4,
    vertical_flip: bool = False,
    bfloat16: bool = False,
    half: bool = False,
    seed: int = 0,
    evaluate_every: int = 1,  # epochs
) -> dict[str, Any]:
    """Train a detector from random weights and write its folded weights to ``out``.

    An interrupted training goes on from ``<out>.checkpoint`` when called again with the same arguments.

    :param splits: "train" and "search" are used; the test split is not looked at
    :param cycles: the epochs are divided into so many equal rises and falls of the learning rate, each half as high as
        the one before
    :param bfloat16: run convolutions in bfloat16 under autocast; weights and optimizer stay float32
    :param half: write float16 weights
    :return: ``map`` (of the kept epoch, search split), ``epoch``, ``seconds``
    :raises InputError: if ``out`` exists and no checkpoint lies beside it, or the training set is below one batch
    """
    out = Path(out)
    checkpoint_path = out.with_name(out.name + ".checkpoint")
    if out.exists() and not checkpoint_path.exists():
        raise InputError(f"{out} exists already: remove it or give another file with --out.")
    check_counts(seed, epochs=epochs, cycles=cycles, batch_size=batch_size, evaluate_every=evaluate_every)
    check_learning_rate(learning_rate)
    if not 1 <= cycles <= epochs or epochs % cycles:
        raise InputError(f"{epochs} epochs cannot be divided into {cycles} equal cycles: change --epochs or --cycles.")
    steps = len(splits["train"]) // batch_size
    if steps == 0:
        raise InputError(f"The training split has {len(splits['train'])} images, fewer than one batch of {batch_size}.")
    torch.manual_seed(seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = spec.build().to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=weight_decay)
    per_cycle = epochs // cycles

    def cycle(number: int) -> torch.optim.lr_scheduler.OneCycleLR:
        peak = learning_rate * CYCLE_DECAY**number
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=per_cycle * steps, pct_start=0.15)

    schedule = cycle(0)
    state: dict[str, Any] = {"epoch": 0, "best": {"map": -1.0, "epoch": -1}, "seconds": 0.0}
    if checkpoint_path.exists():
        total = schedule.total_steps
        state = restore_checkpoint(
            checkpoint_path, model, optimizer, schedule, lambda saved: saved["schedule"]["total_steps"] == total
        )
    with going_on_from(checkpoint_path, out), work("epoch", per_cycle * cycles, state["epoch"]) as training:
        for epoch in range(state["epoch"], per_cycle * cycles):
            started = time.monotonic()
            if epoch and epoch % per_cycle == 0:
                schedule = cycle(epoch // per_cycle)
            rng = np.random.default_rng([seed, epoch])
            batches = each(_epoch(splits["train"], batch_size, rng, vertical_flip), "batch", steps)
            loss = _train_epoch(model, batches, optimizer, schedule, device, bfloat16)
            if (epoch + 1) % evaluate_every == 0 or epoch + 1 == per_cycle * cycles:
                folded = _folded_copy(model).to(device)
                score = evaluate_detector(folded, splits["search"])
                if score > state["best"]["map"]:
                    state["best"] = {"map": score, "epoch": epoch + 1}
                    write_atomically(out, teacher_bytes(folded.cpu(), spec, torch.float16 if half else torch.float32))
                say(f"epoch {epoch + 1}/{epochs}: loss {loss:.3f}, search mAP {score:.4f}")
            best = state["best"]
            measured = f"best mAP {best['map']:.4f} at epoch {best['epoch']}, " if best["epoch"] > 0 else ""
            training.say(f"{measured}loss {loss:.3f}")
            training.advance()
            state["epoch"], state["seconds"] = epoch + 1, state["seconds"] + time.monotonic() - started
            save_checkpoint(checkpoint_path, model, optimizer, schedule, state)
    checkpoint_path.unlink()
    return {**state["best"], "seconds": round(state["seconds"], 1)}


def _train_epoch(
    model: nn.Module,
    batches: Iterable[Batch],
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    device: torch.device,
    bfloat16: bool,
) -> float:
    model.train()
    architecture = architecture_of(model)
    total, count = 0.0, 0
    for batch in batches:
        moved = batch.to(device)
        moved = replace(moved, images=moved.images.to(memory_format=torch.channels_last))
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            losses = architecture.training_losses(model, moved)
        loss = torch.stack(list(losses.values())).sum()
        value = gradient_step(model, loss, optimizer, schedule, GRADIENT_CLIP)
        total, count = total + value, count + 1
    return total / count
