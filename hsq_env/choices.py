"""The vocabulary: what may be chosen for a layer, and a plan of one choice per layer."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectors.errors import InputError

BITS = (2, 4, 8)
SPARSITIES = (0.0, 0.25, 0.5, 0.75)
PATTERNS = ("unstructured", "n:m", "channels")
ACTIVATION_BITS = range(2, 9)
PICTURE_BITS = 8


@dataclass(frozen=True, order=True)
class Choice:
    """Bit-width and sparsity of one layer.

    :param bits: of each stored weight, 2, 4 or 8
    :param sparsity: share of weights, or of input channels, that are zero, one of ``SPARSITIES``

    >>> str(Choice(4, 0.5))
    '4 bit, 50% sparse'
    >>> Choice(2) < Choice(4)
    True
    """

    bits: int
    sparsity: float = 0.0

    def __post_init__(self) -> None:
        if self.bits not in BITS or self.sparsity not in SPARSITIES:
            raise InputError(
                f"A choice of {self.bits} bits and sparsity {self.sparsity} does not exist: "
                f"bits are one of {BITS}, sparsity one of {SPARSITIES}."
            )

    def __str__(self) -> str:
        return f"{self.bits} bit" + (f", {self.sparsity:.0%} sparse" if self.sparsity else "")


def check_activation_bits(given: object) -> None:
    """:raises InputError: if inputs cannot be rounded so"""
    if given not in (None, "match", *ACTIVATION_BITS):
        raise InputError(f"activation_bits is {given!r}: give 2 to 8, 'match' or None.")


def input_bits(index: int, choice: Choice, activation_bits: int | str | None) -> int | None:
    """To how many bits the input of layer ``index`` is rounded; None for float32.

    The first layer reads the picture, whose values have 8 bits to begin with. It keeps them whatever is asked for:
    with fewer, every layer would see a coarser picture, and no byte of the file would be saved.

    :param activation_bits: a number, "match" for the weights' bits, or None

    >>> [input_bits(index, Choice(2), "match") for index in (0, 1)]
    [8, 2]
    """
    bits = choice.bits if activation_bits == "match" else activation_bits
    assert not isinstance(bits, str)
    return bits if bits is None or index > 0 else PICTURE_BITS


def choice_grid(bits: Sequence[int] = BITS, sparsities: Sequence[float] = SPARSITIES) -> tuple[Choice, ...]:
    """All choices, bits-major: action ``i`` has bits ``i // len(sparsities)`` and sparsity ``i % len(sparsities)``.

    >>> grid = choice_grid()
    >>> len(grid), str(grid[5])
    (12, '4 bit, 25% sparse')
    """
    return tuple(Choice(b, s) for b in bits for s in sparsities)


@dataclass(frozen=True)
class Plan:
    """One choice per layer by layer name, in the order of the layers.

    >>> plan = Plan(("stem", "head"), (Choice(8), Choice(2, 0.75)))
    >>> plan.to_json()["layers"][1]
    {'name': 'head', 'bits': 2, 'sparsity': 0.75}
    >>> Plan.from_json(plan.to_json()) == plan
    True
    """

    layers: tuple[str, ...]
    choices: tuple[Choice, ...]

    def __post_init__(self) -> None:
        if len(self.layers) != len(self.choices):
            counts = f"{len(self.layers)} layers, {len(self.choices)} choices"
            raise InputError(f"A plan needs one choice per layer: {counts}.")

    def to_json(self) -> dict[str, Any]:
        """``{"layers": [{"name", "bits", "sparsity"}, ...]}``"""
        rows = zip(self.layers, self.choices, strict=True)
        return {"layers": [{"name": name, "bits": c.bits, "sparsity": c.sparsity} for name, c in rows]}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Plan":
        """The inverse of ``to_json``.

        :raises InputError: if a key is missing or a value is no choice
        """
        try:
            rows = [(row["name"], Choice(row["bits"], row["sparsity"])) for row in data["layers"]]
        except (KeyError, TypeError) as error:
            raise InputError(
                f"This is not a plan ({type(error).__name__}: {error}): see plan.json of a search."
            ) from error
        return cls(tuple(name for name, _ in rows), tuple(choice for _, choice in rows))

    @classmethod
    def read(cls, path: str | Path) -> "Plan":
        """Read ``plan.json``."""
        try:
            return cls.from_json(json.loads(Path(path).read_text()))
        except (OSError, ValueError) as error:  # ValueError: no text, no JSON, no plan
            raise InputError(f"The plan {path} cannot be read ({error}): give the plan.json of a search.") from error
