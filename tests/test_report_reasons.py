"""Why a layer has its choice, in words."""

from report_runs import GRID, LAYERS

from agents.report.reasons import choice_text, reason, sensitivity_of
from agents.report.run import Layer
from hsq_env.choices import Choice

CHOICES = [Choice(bits, sparsity) for bits, sparsity in GRID]
KNOWN = [
    Layer(row["name"], row["weights"], row["float_bytes"], tuple(row["bytes"]), tuple(row["sensitivity"]))
    for row in LAYERS
]
TWO, FOUR, EIGHT = CHOICES


def test_choices_in_words() -> None:
    assert choice_text(Choice(4, 0.25)) == "4 bits, 25% zeros"
    assert choice_text(Choice(8, 0.0)) == "8 bits, no zeros"


def test_sensitivity_is_that_of_the_smallest_choice() -> None:
    assert [sensitivity_of(layer) for layer in KNOWN] == [0.9, 0.05, 0.3]


def test_a_choice_that_its_sensitivity_explains() -> None:
    # bytes of the model: 400 + 2000 + 800 = 3,200
    said = reason(KNOWN, 0, [EIGHT, FOUR, FOUR], CHOICES)
    assert said == (
        "8 bits, no zeros: 400 of 1,600 bytes, 12.5% of all layers before coding; alone it causes a divergence of "
        "0.01. Under its smallest choice 0.9, more than 2 of the 2 others. Next smaller: 4 bits, no zeros would save "
        "6.2% and alone cause 0.2. No larger choice does visibly less harm."
    )


def test_a_choice_in_the_middle() -> None:
    said = reason(KNOWN, 1, [EIGHT, FOUR, FOUR], CHOICES)
    assert "more than 0 of the 2 others" in said
    assert "Next smaller: 2 bits, no zeros would save 31.2% and alone cause 0.05." in said
    less = "Next larger that does visibly less harm: 8 bits, no zeros would add 62.5% and alone cause 0.001."
    assert said.endswith(less)
    assert "does not explain" not in said


def test_a_choice_that_another_beats() -> None:
    said = reason(KNOWN, 2, [EIGHT, FOUR, EIGHT], CHOICES)
    assert (
        "Its own sensitivity does not explain that: 4 bits, no zeros alone does less harm (0) in no more bytes." in said
    )


def test_the_smallest_choice() -> None:
    said = reason(KNOWN, 1, [TWO, TWO, TWO], CHOICES)
    assert "There is no smaller choice. Next larger that does visibly less harm: 4 bits, no zeros would add" in said


def test_what_makes_no_difference_is_not_called_one() -> None:
    layers = [
        Layer("small", 8, 32, (2, 4, 8), (0.10, 0.095, 0.08)),
        Layer("large", 0, 0, (99_990, 99_990, 99_990), (0,) * 3),
    ]
    said = reason(layers, 0, [TWO, TWO], CHOICES)
    assert "2 of 32 bytes, 2 bytes of all layers" in said
    assert "8 bits, no zeros would add 6 bytes and alone cause 0.08" in said  # 4 bits would spare 5 %
    alone = reason(layers[:1], 0, [EIGHT], CHOICES)
    assert "others" not in alone and "Next smaller: 4 bits" in alone
