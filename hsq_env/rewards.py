"""The rewards of a step, as small functions that return named terms."""

from collections.abc import Callable
from dataclasses import dataclass

from hsq_env.choices import BITS, Choice

DIVERGED = -1.0  # added where the student's outputs, or the losses of its repair, are no numbers


@dataclass(frozen=True)
class StepOutcome:
    """What a reward may look at.

    :param accuracy: student over teacher on the search split, 0 where its outputs are no numbers
    :param choice: executed in this step
    :param layer_share: bytes of the layer over its float32 bytes
    :param model_share: the layer's float32 bytes over those of all layers, times the number of layers; 1 on average
    :param last: whether the episode ends with this step
    :param harm: how much the step raised ``log(1 + divergence)``, the divergence being the distillation loss on the
        search images; negative where the repair did more good than the choice did harm
    :param operations_share: bit operations of the layer over those of all layers in float32, times the number of layers
    :param latency_share: time of the layer over that of all layers in float32, times the number of layers
    :param student_share: bytes of the student over those of the teacher, undecided layers counted in float32
    """

    accuracy: float
    choice: Choice
    layer_share: float
    model_share: float
    last: bool
    student_share: float
    harm: float = 0.0
    operations_share: float = 0.0
    latency_share: float = 0.0
    diverged: bool = False


Terms = dict[str, float]
Reward = Callable[[StepOutcome, float], Terms]


def paper(outcome: StepOutcome, beta: float) -> Terms:
    """``beta * Accuracy - (1 - beta) * (BitWidth + SparsityLevel)`` where fewer kept weights count as a gain.

    BitWidth is bits / 8 and SparsityLevel the share of kept weights, halved together so that both cost in [0, 1].

    >>> half = StepOutcome(0.75, Choice(4, 0.5), layer_share=0.1, model_share=1.0, last=False, student_share=0.9)
    >>> paper(half, beta=0.5)
    {'accuracy': 0.375, 'bits': -0.125, 'sparsity': -0.125}
    """
    bits, kept = outcome.choice.bits / max(BITS), 1 - outcome.choice.sparsity
    return {"accuracy": beta * outcome.accuracy, "bits": -(1 - beta) * bits / 2, "sparsity": -(1 - beta) * kept / 2}


def paper_literal(outcome: StepOutcome, beta: float) -> Terms:
    """The formula as printed, by which more sparsity is punished; for comparison.

    >>> sparser = StepOutcome(0.75, Choice(8, 0.75), layer_share=0.1, model_share=1.0, last=False, student_share=0.9)
    >>> sum(paper_literal(sparser, 0.5).values()) < sum(paper(sparser, 0.5).values())
    True
    """
    bits, sparsity = outcome.choice.bits / max(BITS), outcome.choice.sparsity
    return {"accuracy": beta * outcome.accuracy, "bits": -(1 - beta) * bits / 2, "sparsity": -(1 - beta) * sparsity / 2}


def size(outcome: StepOutcome, beta: float) -> Terms:
    """The cost is the layer's real bytes over its float32 bytes, weighted by the layer's share of the model."""
    return {"accuracy": beta * outcome.accuracy, "size": -(1 - beta) * outcome.layer_share * outcome.model_share}


def energy(outcome: StepOutcome, beta: float) -> Terms:
    """The cost is the layer's bit operations (``hsq_env.operations``) over those in float32, by its share of these."""
    return {"accuracy": beta * outcome.accuracy, "operations": -(1 - beta) * outcome.operations_share}


def latency(outcome: StepOutcome, beta: float) -> Terms:
    """The cost is the layer's measured time (``hsq_env.latency_table``) over that in float32, by its share of this."""
    return {"accuracy": beta * outcome.accuracy, "latency": -(1 - beta) * outcome.latency_share}


def terminal(outcome: StepOutcome, beta: float) -> Terms:
    """Zero until the last layer, then the whole plan's accuracy and size (as AMC, He et al. 2018, and HAQ have it)."""
    if not outcome.last:
        return {"accuracy": 0.0, "size": 0.0}
    return {"accuracy": beta * outcome.accuracy, "size": -(1 - beta) * outcome.student_share}


def divergence(outcome: StepOutcome, beta: float) -> Terms:
    """What the step alone did to the outputs, and the layer's real bytes as in ``size``.

    The terms of an episode sum up to the whole plan's ``-log(1 + divergence)``, so that every choice is credited with
    its own harm, once (a potential difference, Ng et al. 1999); mAP on few images is too coarse to show it.
    """
    cost = outcome.layer_share * outcome.model_share
    return {"divergence": -beta * outcome.harm, "size": -(1 - beta) * cost}


REWARDS: dict[str, Reward] = {
    "paper": paper,
    "paper-literal": paper_literal,
    "size": size,
    "energy": energy,
    "latency": latency,
    "terminal": terminal,
    "divergence": divergence,
}


def reward_terms(name: str, outcome: StepOutcome, beta: float) -> Terms:
    """The named reward's terms; a diverged student has one more.

    >>> lost = StepOutcome(0.0, Choice(2), 0.1, 1.0, last=True, student_share=0.125, diverged=True)
    >>> reward_terms("terminal", lost, beta=0.5)
    {'accuracy': 0.0, 'size': -0.0625, 'diverged': -1.0}
    """
    terms = REWARDS[name](outcome, beta)
    return {**terms, "diverged": DIVERGED} if outcome.diverged else terms
