"""What every peer is given, and how what it gives back is measured."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS

from benchmarks.search import TEST_IMAGES
from detectors.errors import InputError
from detectors.stages import per_anchor, run_stages
from detectors.task import SHAPES, DetectionTask, detection_task, shapes_folder
from detectors.teacher import SHIPPED_TEACHER, teacher_bytes

Run = Callable[[Tensor], Sequence[Any]]  # from images to what PlainFCOS puts out, as tensors or arrays
CLEAREST = 60.0  # dB; less error than this counts as none
REPEATS = 15  # of a timing, of which the median counts
TARGET = 8.0  # float32 weights over what mixed precision may keep of them


class PlainFCOS(nn.Module):
    """FCOS from a tensor to tensors without a line that depends on a shape: what every library can follow.

    Upsampling by 2 is what the pyramid does where sides are multiples of 32.

    :param teacher: with batch norms folded; it is copied
    """

    def __init__(self, teacher: FCOS) -> None:
        super().__init__()
        backbone: Any = copy.deepcopy(teacher.backbone)
        head: Any = copy.deepcopy(teacher.head)
        self.body = backbone.body
        self.inner, self.outer = backbone.fpn.inner_blocks, backbone.fpn.layer_blocks
        self.p6, self.p7 = backbone.fpn.extra_blocks.p6, backbone.fpn.extra_blocks.p7
        self.from_p5 = backbone.fpn.extra_blocks.use_P5
        self.up, self.relu = nn.Upsample(scale_factor=2.0, mode="nearest"), nn.ReLU()
        self.classification, self.logits = head.classification_head.conv, head.classification_head.cls_logits
        self.regression, self.boxes = head.regression_head.conv, head.regression_head.bbox_reg
        self.centerness = head.regression_head.bbox_ctrness

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(N, 3, H, W), normalized, to class logits, boxes and centerness of P3, of P4, ... of P7, (N, C, h, w)."""
        body = self.body
        x = body["maxpool"](body["relu"](body["bn1"](body["conv1"](images))))
        c3 = body["layer2"](body["layer1"](x))
        c4 = body["layer3"](c3)
        c5 = body["layer4"](c4)
        m5 = self.inner[2](c5)
        m4 = self.inner[1](c4) + self.up(m5)
        m3 = self.inner[0](c3) + self.up(m4)
        p3, p4, p5 = self.outer[0](m3), self.outer[1](m4), self.outer[2](m5)
        p6 = self.p6(p5 if self.from_p5 else c5)
        outputs: list[Tensor] = []
        for level in (p3, p4, p5, p6, self.p7(self.relu(p6))):
            towers = self.classification(level), self.regression(level)
            outputs += [self.logits(towers[0]), self.relu(self.boxes(towers[1])), self.centerness(towers[1])]
        return tuple(outputs)


@dataclass(frozen=True)
class Compressed:
    """What a peer gives back.

    :param run: its network
    :param bytes: that its export writes
    :param bits: of the weights of every convolution, by their names in ``PlainFCOS``
    :param scales: of all weights together, each in float32
    :param note: what has to be known of the figures
    :param latency_ms: of an image in its own runtime on one thread; None if it only simulates
    :param float32_ms: of the float32 network there, timed in turn
    """

    run: Run
    bytes: int
    bits: dict[str, float]
    scales: int
    note: str
    latency_ms: float | None = None
    float32_ms: float | None = None


class Given:
    """The teacher as a plain network, calibration images, and the metric.

    :param dataset: "shapes" or a COCO-layout folder
    :param teacher: of an FCOS; the shipped one when None
    :param test_images: the first of the test split; all when None
    :raises InputError: for a detector of another kind, or data that cannot be used
    """

    def __init__(
        self, dataset: str | Path = SHAPES, teacher: Path | None = None, test_images: int | None = None
    ) -> None:
        embedded = dataset == SHAPES
        folder = shapes_folder({"test": TEST_IMAGES}) if embedded else dataset
        settings: dict[str, Any] = {"pool_images": 8, "test_images": test_images}
        if not embedded:
            settings |= {"search_images": 8, "calibration_images": 8, "batch_size": 4}
        self.task: DetectionTask = detection_task(
            folder, None, SHIPPED_TEACHER if teacher is None else teacher, **settings
        )
        if not isinstance(self.task.teacher, FCOS):
            raise InputError(f"Peers are given FCOS, and {teacher} is a {self.task.spec.detector}: give another file.")
        self.network = PlainFCOS(self.task.teacher).eval().requires_grad_(False)
        self.classes: int = self.task.teacher.head.classification_head.num_classes
        self.images = [batch.images.cpu() for batch in self.task.calibration()]

    def convolutions(self) -> dict[str, nn.Conv2d]:
        """All, by name."""
        return {name: m for name, m in self.network.named_modules() if isinstance(m, nn.Conv2d)}

    def teacher_bytes(self) -> int:
        """Of the float32 teacher's file."""
        return len(teacher_bytes(self.task.teacher, self.task.spec))

    def channels(self) -> int:
        """Output channels of all convolutions: as many scales as weights per channel have."""
        return sum(layer.out_channels for layer in self.convolutions().values())

    def nominal_bytes(self, bits: dict[str, float], scales: int) -> int:
        """What the teacher's file would weigh if each convolution's weights took their bits, and scales 4 bytes."""
        saved = sum(m.weight.numel() * (32 - bits[name]) / 8 for name, m in self.convolutions().items())
        return round(self.teacher_bytes() - saved + 4 * scales)

    def widths(self, network: nn.Module, width_of: Callable[[Any], float]) -> dict[str, float]:
        """Bits of every convolution in a network that has its weights under other names, perhaps in several copies.

        Of copies with several widths the largest counts.

        :param width_of: bits of a convolution of ``network``
        """
        layers = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
        return {
            name: max(
                width_of(layer)
                for layer in layers
                if layer.weight.shape == own.weight.shape and torch.equal(layer.weight, own.weight)
            )
            for name, own in self.convolutions().items()
        }

    def joined(self, outputs: Sequence[Any]) -> dict[str, Tensor]:
        """A plain network's outputs as the last stage has them."""
        maps = [torch.as_tensor(x) for x in outputs]
        names = {"cls_logits": self.classes, "bbox_regression": 4, "bbox_ctrness": 1}
        return {
            name: torch.cat([per_anchor(x, columns) for x in maps[first::3]], dim=1)
            for first, (name, columns) in enumerate(names.items())
        }

    @torch.no_grad()
    def score(self, run: Run, split: str = "test") -> float:
        """mAP of a network in the teacher's place."""
        stages, found = self.task.stages(self.task.teacher), []
        for batch in self.task.evaluation(split):
            state = run_stages(stages, {"images": batch.images})  # for the shapes of the pyramid
            outputs = self.joined(run(batch.images.cpu()))
            found.append(self.task.predictions({**state, **outputs}, batch))
        return self.task.metric(found, split)

    @torch.no_grad()
    def signal_to_noise(self, run: Run) -> float:
        """dB of the teacher's outputs over a network's errors, on the calibration images; ``CLEAREST`` at most.

        The mean over class logits, boxes and centerness, each about its own mean: logits far below zero everywhere
        would count as signal, and more than all else.
        """
        ratios = []
        for images in self.images:
            expected, found = self.joined(self.network(images)), self.joined(run(images))
            for name, own in expected.items():
                ratios.append(10 * torch.log10(own.var(correction=0) / (own - found[name]).square().mean()))
        return min(CLEAREST, float(torch.stack(ratios).clamp_max(CLEAREST).mean()))
