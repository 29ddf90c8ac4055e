"""What settings may be, said in one sentence."""

from typing import Any

from detectors.errors import InputError


def check_known(what: str, given: Any, known: Any) -> None:
    """:raises InputError: if it is none of what is known"""
    if given not in known:
        raise InputError(f"Unknown {what} {given!r}: known are {', '.join(map(repr, known))}.")


def check_share(what: str, given: float) -> None:
    """:raises InputError: if it is not in [0, 1]"""
    if not 0 <= given <= 1:
        raise InputError(f"{what} is {given!r}: give a number from 0 to 1.")
