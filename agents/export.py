"""From a ``.hsq`` file to an ONNX file, checked on the spot."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from agents.model_task import model_task
from detectors.errors import InputError
from detectors.teacher import write_atomically
from hsq_env.make import Made
from hsq_env.onnx_file import onnx_bytes, outputs_of
from hsq_env.states import run

# Of the metric, between the student and the ONNX file: onnxruntime adds up in another order and with rounded biases, so
# that activations next to a rounding boundary fall on its other side, and everything behind them changes a little.
TOLERANCES = {"mAP": 0.002, "PSNR": 0.01}


@dataclass(frozen=True)
class Exported:
    """An ONNX file and what it is worth.

    :param onnx: its path
    :param bytes: its size
    :param hsq_bytes: the size of the file that it was made from
    :param metric: name of the two figures
    :param student: of the ``.hsq`` file's model, on the test split
    :param runtime: of the ONNX file in onnxruntime, on the same images
    """

    onnx: str
    bytes: int
    hsq_bytes: int
    metric: str
    student: float
    runtime: float

    @property
    def agrees(self) -> bool:
        """Whether both figures are the same within ``TOLERANCES``."""
        return abs(self.student - self.runtime) <= TOLERANCES.get(self.metric, 0.0)

    def to_json(self) -> dict[str, Any]:
        """For a script."""
        return {**asdict(self), "agrees": self.agrees}


def export(file: Path, onnx: Path, dataset: str | None = None, splits: Sequence[str] | None = None) -> Exported:
    """Write an ONNX file and measure it beside the student, on the test split.

    :param file: a ``.hsq`` file
    :param dataset: data of the model's kind; the embedded data when None
    :raises InputError: if a file or the data cannot be used
    """
    if onnx.is_dir() or not onnx.parent.is_dir():
        raise InputError(f"{onnx} cannot be written: give a file in a folder that exists (--onnx FILE).")
    task = model_task(file, dataset, splits)
    content = onnx_bytes(task.teacher, task.stages, task.calibration()[0].images)
    write_atomically(onnx, content)
    student, runtime = _metrics(task, content)
    return Exported(str(onnx), len(content), file.stat().st_size, task.metric_name, student, runtime)


@torch.no_grad()
def _metrics(task: Made, content: bytes) -> tuple[float, float]:
    """Of the model and of the ONNX file, on the same batches of the test split."""
    stages, found = task.stages(task.teacher), outputs_of(content, torch.get_num_threads())
    batches: Sequence[Any] = task.evaluation("test")
    ours: list[Any] = []
    theirs: list[Any] = []
    for batch in tqdm(batches, "measuring", disable=None, leave=False):
        state: dict[str, Any] = run(stages, {"images": batch.images})
        computed = found(batch.images.cpu().numpy())
        outputs = {name: torch.from_numpy(value).to(batch.images.device) for name, value in computed.items()}
        ours.append(task.predictions(state, batch))
        theirs.append(task.predictions({**state, **outputs}, batch))
    return task.metric(ours, "test"), task.metric(theirs, "test")
