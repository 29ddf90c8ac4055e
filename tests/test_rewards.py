"""The rewards by hand."""

from dataclasses import replace

import pytest

from hsq_env.choices import Choice
from hsq_env.rewards import REWARDS, StepOutcome, reward_terms

OUTCOME = StepOutcome(
    accuracy=0.9,
    choice=Choice(4, 0.75),
    layer_share=0.125,
    model_share=2.0,
    last=False,
    student_share=0.25,
    harm=0.3,
    operations_share=0.5,
    latency_share=0.25,
)


def test_paper() -> None:
    """0.8 * 0.9 - 0.2 * (4/8 + 0.25) / 2"""
    assert reward_terms("paper", OUTCOME, 0.8) == pytest.approx({"accuracy": 0.72, "bits": -0.05, "sparsity": -0.025})


def test_paper_literal() -> None:
    """0.8 * 0.9 - 0.2 * (4/8 + 0.75) / 2"""
    terms = reward_terms("paper-literal", OUTCOME, 0.8)
    assert terms == pytest.approx({"accuracy": 0.72, "bits": -0.05, "sparsity": -0.075})


def test_size() -> None:
    """0.8 * 0.9 - 0.2 * 0.125 * 2"""
    assert reward_terms("size", OUTCOME, 0.8) == pytest.approx({"accuracy": 0.72, "size": -0.05})


def test_energy() -> None:
    """0.8 * 0.9 - 0.2 * 0.5"""
    assert reward_terms("energy", OUTCOME, 0.8) == pytest.approx({"accuracy": 0.72, "operations": -0.1})


def test_latency() -> None:
    """0.8 * 0.9 - 0.2 * 0.25"""
    assert reward_terms("latency", OUTCOME, 0.8) == pytest.approx({"accuracy": 0.72, "latency": -0.05})


def test_divergence() -> None:
    """-0.8 * 0.3, and the size as above"""
    assert reward_terms("divergence", OUTCOME, 0.8) == pytest.approx({"divergence": -0.24, "size": -0.05})


def test_terminal_is_zero_until_the_last_layer() -> None:
    assert reward_terms("terminal", OUTCOME, 0.8) == {"accuracy": 0.0, "size": 0.0}
    terms = reward_terms("terminal", replace(OUTCOME, last=True), 0.8)
    assert terms == pytest.approx({"accuracy": 0.72, "size": -0.05})


def test_more_sparsity_is_a_gain_but_in_the_printed_formula() -> None:
    def total(name: str, sparsity: float) -> float:
        return sum(reward_terms(name, replace(OUTCOME, choice=Choice(4, sparsity)), 0.5).values())

    steps = (0.0, 0.25, 0.5, 0.75)
    gained, printed = ([total(name, s) for s in steps] for name in ("paper", "paper-literal"))
    assert gained == sorted(gained) and len(set(gained)) == 4
    assert printed == sorted(printed, reverse=True) and len(set(printed)) == 4


def test_costs_lie_in_the_unit_interval() -> None:
    for choice in (Choice(8, 0.0), Choice(2, 0.75)):
        cost = -sum(reward_terms("paper", replace(OUTCOME, choice=choice), 0.0).values())
        assert cost == {8: 1.0, 2: 0.25}[choice.bits]


@pytest.mark.parametrize("name", sorted(REWARDS))
def test_beta_one_leaves_accuracy_alone(name: str) -> None:
    terms = reward_terms(name, replace(OUTCOME, last=True), 1.0)
    expected = {"accuracy": 0.9} if name != "divergence" else {"divergence": -0.3}
    assert {key: terms.pop(key) for key in expected} == expected
    assert set(terms.values()) == {0.0}


@pytest.mark.parametrize("name", sorted(REWARDS))
def test_divergence_adds_one_term(name: str) -> None:
    outcome = replace(OUTCOME, accuracy=0.0, last=True)
    terms = reward_terms(name, replace(outcome, diverged=True), 0.6)
    assert terms.pop("diverged") == -1.0
    assert terms == reward_terms(name, outcome, 0.6)
