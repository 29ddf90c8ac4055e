"""Adaptive knowledge distillation: ``alpha * task loss + (1 - alpha) * KL(teacher || student)``.

Each divergence is computed per location and reduced afterwards, so that a weight map can be put in between (SPARK's,
``hsq_env.distillation.policy``). The criterion returns unweighted terms; whoever trains sums them with ``AKD.weights``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from hsq_env.distillation.policy import spread_over
from hsq_env.task import Distilled

SMALLEST_WEIGHT = 1e-6  # of a batch's total confidence, where the teacher sees nothing


def logits_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Bernoulli KL divergence of independent class logits, summed over classes.

    Detectors with a sigmoid per class have one Bernoulli variable per class and location; the factor T^2 keeps the
    gradient's size independent of the temperature (Hinton et al. 2015, arXiv 1503.02531, section 2).

    :param student: (N, L, classes)
    :param teacher: the same shape
    :param temperature: > 0
    :return: (N, L), non-negative
    """
    log_p, log_not_p = F.logsigmoid(teacher / temperature), F.logsigmoid(-teacher / temperature)
    log_q, log_not_q = F.logsigmoid(student / temperature), F.logsigmoid(-student / temperature)
    divergence = log_p.exp() * (log_p - log_q) + log_not_p.exp() * (log_not_p - log_not_q)
    return divergence.sum(dim=-1) * temperature**2


def categories_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL divergence of one categorical variable per location (Hinton et al. 2015), times T^2 as above.

    :param student: (N, L, classes), logits, the background's first
    :param teacher: the same shape
    :param temperature: > 0
    :return: (N, L), non-negative up to rounding
    """
    log_p, log_q = (F.log_softmax(logits / temperature, dim=-1) for logits in (teacher, student))
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1) * temperature**2


def channel_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Channel-wise KL divergence of feature maps (Shu et al. 2021, arXiv 2011.13256, equation 3), mean over channels.

    Every channel's map is softmaxed over space, so that the divergence looks at where a channel is active.

    :param student: (N, C, H, W)
    :param teacher: the same shape
    :return: (N, H, W), non-negative up to rounding
    """
    log_p = F.log_softmax(teacher.flatten(2) / temperature, dim=2)
    log_q = F.log_softmax(student.flatten(2) / temperature, dim=2)
    p = log_p.exp()
    # both softmaxes sum to 1, so that q - p changes no sum and makes every place's part non-negative
    divergence = (p * (log_p - log_q) + log_q.exp() - p).mean(dim=1) * temperature**2
    return divergence.reshape(teacher.shape[0], *teacher.shape[2:])


def box_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean absolute difference of box outputs (N, L, D) per location, (N, L)."""
    return (student - teacher).abs().mean(dim=-1)


def centerness_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Bernoulli KL divergence of one logit per location, (N, L, 1) to (N, L)."""
    return logits_divergence(student, teacher, 1.0)


def pixel_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of images (N, C, H, W) over channels, (N, H, W).

    It is twice the KL divergence of Gaussians around both, with the unit of the images as their standard deviation,
    and what PSNR looks at.
    """
    return (student - teacher).square().mean(dim=1)


def teacher_confidence(distilled: Sequence[Distilled]) -> dict[int, Tensor]:
    """How likely the teacher holds each location to be an object, (N, L) by L: outputs of one stage have one L.

    The highest class probability, or one less the background's.
    """
    found: dict[int, Tensor] = {}
    for item in distilled:
        if item.kind == "logits":
            found.setdefault(item.tensor.shape[1], item.tensor.sigmoid().amax(dim=-1))
        elif item.kind == "categories":
            found.setdefault(item.tensor.shape[1], 1 - item.tensor.softmax(dim=-1)[..., 0])
    return found


# How a student is judged. benchmarks/judging.py compares weights by the plans that integer programs make of them; it is
# not finished, and these are not settled.
JUDGING_WEIGHTS = {
    "logits": 1.0,
    "categories": 1.0,
    "boxes": 10.0,
    "centerness": 10.0,
    "features": 0.1,
    "pixels": 1.0,
}


class Places:
    """Where the locations of a detector's outputs lie: row by row on the pyramid's maps, one after the other.

    Where a detector has several anchors per place, all of a place follow each other.

    :param distilled: whose "features", if any, have the sizes of those maps
    """

    def __init__(self, distilled: Sequence[Distilled]) -> None:
        shapes = [item.tensor.shape for item in distilled if item.kind == "features"]
        self.sizes = [(int(shape[2]), int(shape[3])) for shape in shapes]
        self.counts = [height * width for height, width in self.sizes]

    def maps(self, divergence: Tensor) -> list[Tensor]:
        """A divergence per location (N, L) as maps (N, H, W); one that is a map already; none if it has no places.

        Several anchors of a place are summed.
        """
        if divergence.dim() == 3:
            return [divergence]
        if not self._anchors(divergence):
            return []
        parts = divergence.unflatten(1, (sum(self.counts), -1)).sum(dim=2).split(self.counts, dim=1)
        return [part.unflatten(1, size) for part, size in zip(parts, self.sizes, strict=True)]

    def weighted(self, divergence: Tensor, weights: Tensor) -> Tensor:
        """Multiplied place by place; unchanged if it has no places.

        :param divergence: (N, L) or (N, H, W)
        :param weights: (N, grid, grid)
        """
        if divergence.dim() == 3:
            return divergence * spread_over(weights, divergence.shape[1], divergence.shape[2])
        anchors = self._anchors(divergence)
        if not anchors:
            return divergence
        spread = torch.cat([spread_over(weights, *size).flatten(1) for size in self.sizes], dim=1)
        return divergence * spread.repeat_interleave(anchors, dim=1)

    def _anchors(self, divergence: Tensor) -> int:
        """How many anchors a place has; 0 if the locations of (N, L) are no places of the maps."""
        places = sum(self.counts)
        return 0 if not places or divergence.shape[1] % places else divergence.shape[1] // places


@dataclass(frozen=True)
class AKD:
    """The criterion.

    :param temperature: of the class logits
    :param feature_temperature: of the channel-wise softmax
    :param weights: factor of each kind of term in the KL part
    """

    temperature: float = 2.0
    feature_temperature: float = 1.0
    weights: dict[str, float] = field(
        default_factory=lambda: {
            "logits": 0.3,
            "categories": 0.3,
            "boxes": 10.0,
            "centerness": 5.0,
            "features": 0.3,
            "pixels": 1.0,
        }
    )

    def terms(
        self, student: Sequence[Distilled], teacher: Sequence[Distilled], weights: Tensor | None = None
    ) -> dict[str, Tensor]:
        """One unweighted scalar per kind.

        Terms over locations are weighted by the teacher's confidence and divided by its sum, as a detector's own
        losses are divided by the number of foreground locations; class logits count everywhere, since background
        must stay background, and are divided by the same sum. Feature terms are summed over space and averaged over
        images and maps. A detector with two stages has outputs of both, each weighted by its own stage's confidence;
        items of one kind are averaged.

        :param weights: of places, (N, grid, grid), mean 1 over every image; all alike when None
        """
        return self._terms(self._divergences(student, teacher), teacher, weights)

    def _divergences(self, student: Sequence[Distilled], teacher: Sequence[Distilled]) -> list[Tensor]:
        return [self._divergence(t.kind)(s.tensor, t.tensor) for s, t in zip(student, teacher, strict=True)]

    def _terms(
        self, divergences: Sequence[Tensor], teacher: Sequence[Distilled], weights: Tensor | None
    ) -> dict[str, Tensor]:
        confidence = teacher_confidence(teacher)
        places = None if weights is None else Places(teacher)
        terms: dict[str, list[Tensor]] = {}
        for divergence, t in zip(divergences, teacher, strict=True):
            if places is not None and weights is not None:
                divergence = places.weighted(divergence, weights)
            terms.setdefault(t.kind, []).append(divergence)
        return {kind: self._reduced(kind, maps, confidence) for kind, maps in terms.items()}

    def _sum(self, terms: dict[str, Tensor]) -> Tensor:
        return torch.stack([self.weights[kind] * term for kind, term in terms.items()]).sum()

    def loss(self, student: Sequence[Distilled], teacher: Sequence[Distilled], weights: Tensor | None = None) -> Tensor:
        """The weighted sum of all terms, the KL part of the loss; ``weights`` as for ``terms``."""
        return self._sum(self.terms(student, teacher, weights))

    def losses(
        self, student: Sequence[Distilled], teacher: Sequence[Distilled], weights: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """``loss`` without and with weights; what both have in common is computed once."""
        divergences = self._divergences(student, teacher)
        plain = self._sum(self._terms(divergences, teacher, None))
        return plain, plain if weights is None else self._sum(self._terms(divergences, teacher, weights))

    def gaps(self, student: Sequence[Distilled], teacher: Sequence[Distilled]) -> list[Tensor]:
        """The divergences per location times ``weights``, as maps (N, H, W)."""
        places = Places(teacher)
        return [
            self.weights[t.kind] * found
            for s, t in zip(student, teacher, strict=True)
            for found in places.maps(self._divergence(t.kind)(s.tensor, t.tensor))
        ]

    def _divergence(self, kind: str) -> Callable[[Tensor, Tensor], Tensor]:
        return {
            "logits": lambda s, t: logits_divergence(s, t, self.temperature),
            "categories": lambda s, t: categories_divergence(s, t, self.temperature),
            "features": lambda s, t: channel_divergence(s, t, self.feature_temperature),
            "boxes": box_divergence,
            "centerness": centerness_divergence,
            "pixels": pixel_divergence,
        }[kind]

    @staticmethod
    def _reduced(kind: str, maps: Sequence[Tensor], confidences: dict[int, Tensor]) -> Tensor:
        if kind == "features":
            return torch.stack([m.flatten(1).sum(dim=1).mean() for m in maps]).mean()
        reduced = []
        for m in maps:
            confidence = None if kind == "pixels" else confidences.get(m.shape[1])
            if confidence is None:
                reduced.append(m.mean())
                continue
            total = confidence.sum().clamp_min(SMALLEST_WEIGHT)
            weight = torch.ones_like(confidence) if kind in ("logits", "categories") else confidence
            reduced.append((m * weight).sum() / total)
        return torch.stack(reduced).mean()
