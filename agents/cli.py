"""The ``hsq`` command. Bad input ends in one sentence and exit code 2, Ctrl-C in exit code 130."""

import errno
import sys

import hsq_env  # noqa: F401 - sets OMP_WAIT_POLICY before torch loads

# isort: split
import tyro

from agents.commands import COMMANDS
from detectors.errors import InputError

EXIT_BAD_INPUT, EXIT_INTERRUPTED = 2, 130


def main(arguments: list[str] | None = None) -> None:
    """Run the command and turn expected failures into a sentence and an exit code."""
    try:
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS, prog="hsq", description="Make a trained detector or restorer small.", args=arguments
        )
    except InputError as error:
        _fail(str(error), EXIT_BAD_INPUT)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EACCES, errno.EPERM, errno.EROFS, errno.EDQUOT, errno.EFBIG):
            raise
        remedy = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "choose another place"
        _fail(
            f"Cannot write {error.filename or 'the output'} ({error.strerror}): {remedy} and try again.", EXIT_BAD_INPUT
        )
    except KeyboardInterrupt as error:
        _fail(str(error) or "Interrupted.", EXIT_INTERRUPTED)


def _fail(sentence: str, code: int) -> None:
    print(f"hsq: {sentence}", file=sys.stderr)
    raise SystemExit(code)


if __name__ == "__main__":
    main()
