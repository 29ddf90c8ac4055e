"""Teacher training for restorers: Adam with a cosine schedule on random patches, resumable, the best kept by PSNR."""

import copy
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from detectors.checkpoint import going_on_from, gradient_step, restore_checkpoint, save_checkpoint
from detectors.checks import check_learning_rate
from detectors.errors import InputError
from detectors.files import write_atomically
from detectors.progress import each, say, work
from detectors.stages import run_stages
from detectors.teacher import freeze
from restorers.images import Photos
from restorers.task import RestorationTask
from restorers.teacher import Restorer, RestorerSpec, folded, teacher_bytes

GRADIENT_CLIP = 1.0  # norm


def train_restorer(
    splits: dict[str, Photos],
    spec: RestorerSpec,
    out: str | Path,
    epochs: int = 20,
    steps_per_epoch: int = 100,
    batch_size: int = 16,
    patch: int = 48,
    learning_rate: float = 1e-3,
    bfloat16: bool = False,
    half: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """Train a restorer from random weights by the mean absolute error and write its folded weights to ``out``.

    An interrupted training goes on from ``<out>.checkpoint`` when called again with the same arguments.

    :param splits: "train" and "search" are used; the test split is not looked at
    :param epochs: of ``steps_per_epoch`` batches each, since patches are drawn at random
    :param patch: side of patches in the restored image, in pixels
    :param learning_rate: at the start; it falls to 0
    :param bfloat16: run convolutions in bfloat16 under autocast; weights and optimizer stay float32
    :param half: write float16 weights
    :return: ``psnr`` (of the kept epoch, search split), ``epoch``, ``seconds``
    :raises InputError: if ``out`` exists without a checkpoint beside it, an image is smaller than a patch, or the loss
        becomes no number
    """
    out = Path(out)
    checkpoint = out.with_name(out.name + ".checkpoint")
    if out.exists() and not checkpoint.exists():
        raise InputError(f"{out} exists already: remove it or give another file with --out.")
    if epochs < 1 or steps_per_epoch < 1 or batch_size < 1:
        raise InputError(f"{epochs} epochs of {steps_per_epoch} batches of {batch_size}: each must be 1 or more.")
    check_learning_rate(learning_rate)
    torch.manual_seed(seed)
    model = spec.build()
    data = RestorationTask("training", model, spec, splits, pool_images=1, calibration_images=1, batch_size=batch_size,
                           patch=patch, seed=seed)  # fmt: skip
    model.to(data.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    total = epochs * steps_per_epoch
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / total)))
    state: dict[str, Any] = {"epoch": 0, "total": total, "best": {"psnr": -math.inf, "epoch": -1}, "seconds": 0.0}
    if checkpoint.exists():
        state = restore_checkpoint(
            checkpoint, model, optimizer, schedule, lambda saved: saved["state"]["total"] == total
        )
    with going_on_from(checkpoint, out), work("epoch", epochs, state["epoch"]) as training:
        for epoch in range(state["epoch"], epochs):
            started = time.monotonic()
            steps = range(epoch * steps_per_epoch, (epoch + 1) * steps_per_epoch)
            loss = _train_epoch(model, data, steps, optimizer, schedule, bfloat16)
            finished = freeze(folded(copy.deepcopy(model)))
            score = _psnr(data, finished)
            if score > state["best"]["psnr"]:
                state["best"] = {"psnr": score, "epoch": epoch + 1}
                write_atomically(out, teacher_bytes(finished.cpu(), spec, torch.float16 if half else torch.float32))
            say(f"epoch {epoch + 1}/{epochs}: loss {loss:.4f}, search PSNR {score:.3f}")
            training.say(f"best PSNR {state['best']['psnr']:.3f} at epoch {state['best']['epoch']}, loss {loss:.4f}")
            training.advance()
            state["epoch"], state["seconds"] = epoch + 1, state["seconds"] + time.monotonic() - started
            save_checkpoint(checkpoint, model, optimizer, schedule, state)
    checkpoint.unlink()
    return {**state["best"], "seconds": round(state["seconds"], 1)}


def _train_epoch(
    model: Restorer,
    data: RestorationTask,
    steps: Sequence[int],
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    bfloat16: bool,
) -> float:
    model.train()
    total = 0.0
    for step in each(steps, "step"):
        batch = data.long_finetuning(step)
        with torch.autocast(data.device.type, torch.bfloat16, enabled=bfloat16):
            restored = model(batch.images)
        loss = data.task_loss({"restored": restored.float()}, batch)
        total += gradient_step(model, loss, optimizer, schedule, GRADIENT_CLIP)
    return total / len(steps)


@torch.no_grad()
def _psnr(data: RestorationTask, model: nn.Module) -> float:
    found = []
    for batch in data.evaluation("search"):
        found.append(data.predictions(run_stages(data.stages(model), {"images": batch.images}), batch))
    return data.metric(found, "search")
