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
        "8 bits, no zeros: 400 of 1,600 bytes, 12.5% of the model; alone it causes a divergence of 0.01. Under its "
        "smallest choice 0.9, more than 2 of the 2 other layers. Smaller: 4 bits, no zeros would save 6.2% of the "
        "model and alone cause 0.2. No larger choice does less harm."
    )


def test_a_choice_in_the_middle() -> None:
    said = reason(KNOWN, 1, [EIGHT, FOUR, FOUR], CHOICES)
    assert "more than 0 of the 2 other layers" in said
    assert "Smaller: 2 bits, no zeros would save 31.2% of the model and alone cause 0.05." in said
    assert said.endswith("Larger: 8 bits, no zeros would add 62.5% and alone cause 0.001.")
    assert "does not explain" not in said


def test_a_choice_that_another_beats() -> None:
    said = reason(KNOWN, 2, [EIGHT, FOUR, EIGHT], CHOICES)
    assert (
        "Its own sensitivity does not explain that: 4 bits, no zeros alone does less harm (0) in no more bytes." in said
    )


def test_the_smallest_choice() -> None:
    said = reason(KNOWN, 1, [TWO, TWO, TWO], CHOICES)
    assert "There is no smaller choice. Larger: 4 bits, no zeros would add" in said
