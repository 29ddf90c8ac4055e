"""Numbers that are checked before anything is done with them."""

from detectors.errors import InputError


def check_counts(seed: int, **counts: int | None) -> None:
    """:raises InputError: for a negative seed or a count below 1; None means all and is none"""
    if seed < 0:
        raise InputError(f"The seed is {seed}: give 0 or more (--seed).")
    for name, count in counts.items():
        if count is not None and count < 1:
            raise InputError(f"{name} is {count}: give 1 or more.")


def check_learning_rate(given: float) -> None:
    """:raises InputError: if it is not above 0"""
    if not given > 0:
        raise InputError(f"The learning rate is {given}: give a number above 0 (--learning-rate).")
