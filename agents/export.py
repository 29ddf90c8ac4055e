"""From a ``.hsq`` file to an ONNX file, checked on the spot."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.bench import integer_convolutions
from agents.model_task import model_task
from detectors.errors import InputError
from detectors.export import TraceableDetection, check_exportable
from detectors.files import write_atomically
from detectors.progress import each
from detectors.task import DetectionTask
from hsq_env.make import Made
from hsq_env.onnx_file import onnx_bytes, outputs_of, with_metadata
from hsq_env.onnx_integer import integer_form
from hsq_env.states import run

# Of the metric, between the student and the ONNX file: onnxruntime adds up in another order and with rounded biases, so
# that activations next to a rounding boundary fall on its other side, and everything behind them changes a little.
TOLERANCES = {"mAP": 0.002, "PSNR": 0.01}
CALIBRATION_IMAGES = 32  # for the spans of what convolutions put out; one alone cost 0.7 points of mAP


@dataclass(frozen=True)
class Exported:
    """An ONNX file and what it is worth.

    :param onnx: its path
    :param bytes: its size
    :param hsq_bytes: the size of the file that it was made from
    :param metric: name of the two figures
    :param student: of the ``.hsq`` file's model, on the test split
    :param runtime: of the ONNX file in onnxruntime, on the same images
    :param outputs: names of what the file puts out
    :param arithmetic: "integer" or "float", see ``export``
    """

    onnx: str
    bytes: int
    hsq_bytes: int
    metric: str
    student: float
    runtime: float
    outputs: tuple[str, ...] = ()
    arithmetic: str = "float"

    @property
    def agrees(self) -> bool:
        """Whether both figures are the same within ``TOLERANCES``."""
        return _agree(self.metric, self.student, self.runtime)

    def to_json(self) -> dict[str, Any]:
        """For a script."""
        return {**asdict(self), "agrees": self.agrees}


def export(
    file: Path,
    onnx: Path,
    dataset: str | None = None,
    splits: Sequence[str] | None = None,
    post_processing: bool = False,
    arithmetic: str = "auto",
) -> Exported:
    """Write an ONNX file and measure it beside the student, on the test split.

    :param file: a ``.hsq`` file
    :param dataset: data of the model's kind; the embedded data when None
    :param post_processing: of a detector: boxes, scores and labels of one image at a time in place of the head's
        outputs
    :param arithmetic: "integer" rounds what convolutions put out as well, so that onnxruntime computes them in
        integers (``hsq_env.onnx_integer``); "float" does not; "auto" does where it costs no more than the tolerance on
        the search split
    :raises InputError: if a file or the data cannot be used
    """
    if onnx.is_dir() or not onnx.parent.is_dir():
        raise InputError(f"{onnx} cannot be written: give a file in a folder that exists (--onnx FILE).")
    if onnx.exists() and onnx.suffix != ".onnx":
        raise InputError(f"{onnx} exists already and is no .onnx file: give another (--onnx FILE).")
    task = model_task(file, dataset, splits, CALIBRATION_IMAGES)
    if post_processing and not isinstance(task, DetectionTask):
        raise InputError(f"{file} holds a restorer, which has no post-processing: leave --post-processing out.")
    check_exportable(task.teacher, post_processing)
    around = TraceableDetection() if post_processing else None
    # widened: where two layers follow each other onnxruntime 1.31 makes an integer convolution of its own, which takes
    # no weights of fewer bits
    exact = onnx_bytes(task.teacher, task.stages, task.calibration()[0].images, around, widen=True)
    content = exact if arithmetic == "float" else integer_form(exact, _calibration(task, post_processing))
    if arithmetic == "auto":
        student, runtime, _ = _metrics(task, content, post_processing, "search")
        if not _agree(task.metric_name, student, runtime):
            content = exact
    used = "integer" if content is not exact and integer_convolutions(content)[0] else "float"
    content = exact if used == "float" else content
    content = with_metadata(content, task.describe())
    student, runtime, outputs = _metrics(task, content, post_processing, "test")
    write_atomically(onnx, content)
    return Exported(str(onnx), len(content), file.stat().st_size, task.metric_name, student, runtime, outputs, used)


def _agree(metric: str, student: float, runtime: float) -> bool:
    return abs(student - runtime) <= TOLERANCES.get(metric, 0.0)


def _calibration(task: Made, one_by_one: bool) -> list[NDArray[np.float32]]:
    """Training images, in batches or one by one."""
    batches: list[NDArray[np.float32]] = [batch.images.cpu().numpy() for batch in task.calibration()]
    return [image[None] for batch in batches for image in batch] if one_by_one else batches


@torch.no_grad()
def _metrics(task: Made, content: bytes, post_processing: bool, split: str) -> tuple[float, float, tuple[str, ...]]:
    """Of the model and of the ONNX file, on the same batches, and the file's outputs."""
    stages, found = task.stages(task.teacher), outputs_of(content, torch.get_num_threads())
    batches: Sequence[Any] = task.evaluation(split)
    ours: list[Any] = []
    theirs: list[Any] = []
    for batch in each(batches, f"measuring {split} images, batch"):
        state: dict[str, Any] = run(stages, {"images": batch.images})
        ours.append(task.predictions(state, batch))
        if post_processing:
            sizes = zip(batch.images.cpu().numpy(), batch.image_sizes, strict=True)
            pieces = [_tensors(found(image[None, :, :height, :width])) for image, (height, width) in sizes]
            names = tuple(pieces[0])
            theirs.append(pieces)
        else:
            computed = _tensors(found(batch.images.cpu().numpy()))
            names = tuple(computed)
            outputs = {name: value.to(batch.images.device) for name, value in computed.items()}
            theirs.append(task.predictions({**state, **outputs}, batch))
    return task.metric(ours, split), task.metric(theirs, split), names


def _tensors(computed: dict[str, Any]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(value) for name, value in computed.items()}
