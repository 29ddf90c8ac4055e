"""What goes to standard output: text for people, or one JSON document for machines."""

import contextlib
import json
import math
import sys
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def aside(asked: bool) -> Iterator[None]:
    """Where JSON was asked for, what is printed inside goes to standard error: standard output is the document's."""
    with contextlib.redirect_stdout(sys.stderr) if asked else contextlib.nullcontext():
        yield


def print_json(content: Any) -> None:
    """The document, on a line; numbers that JSON does not have, of students that diverged, are null."""
    print(json.dumps(_finite(content), allow_nan=False))


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {name: _finite(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
