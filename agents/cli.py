"""The ``hsq`` command. Bad input ends in one sentence and exit code 2, Ctrl-C in exit code 130."""

import contextlib
import errno
import os
import sys

import agents  # noqa: F401 - sets OMP_WAIT_POLICY before torch loads
from agents.progress import shown
from detectors.errors import InputError

EXIT_BAD_INPUT, EXIT_INTERRUPTED, EXIT_BROKEN_PIPE = 2, 130, 141
OURS = ("agents", "detectors", "hsq_env", "restorers")


def main(arguments: list[str] | None = None) -> None:
    """Run the command and turn expected failures into a sentence and an exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        with shown():
            _run(arguments)
    except InputError as error:
        _fail(str(error), EXIT_BAD_INPUT)
    except ImportError as error:
        if not error.name or error.name.split(".")[0] in OURS:
            raise
        _fail(f"{error.name} cannot be imported ({error}): 'hsq doctor' says what to install.", EXIT_BAD_INPUT)
    except BrokenPipeError:  # hsq ... | head: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(EXIT_BROKEN_PIPE) from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EACCES, errno.EPERM, errno.EROFS, errno.EDQUOT, errno.EFBIG):
            raise
        remedy = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "choose another place"
        _fail(
            f"Cannot write {error.filename or 'the output'} ({error.strerror}): {remedy} and try again.", EXIT_BAD_INPUT
        )
    except KeyboardInterrupt as error:
        _fail(str(error) or "Interrupted.", EXIT_INTERRUPTED)


def _run(arguments: list[str]) -> None:
    if arguments == ["--version"]:
        from agents.doctor import version

        print(f"hsq {version()}")
        return
    if arguments in (["doctor"], ["doctor", "--json"]):  # it must answer where the parser's package is missing too
        from agents.doctor import doctor

        doctor(json="--json" in arguments)
        return
    from agents.parser import call

    if arguments:
        call(arguments)
        return
    with contextlib.redirect_stdout(sys.stderr), contextlib.suppress(SystemExit):
        call(["--help"])
    raise SystemExit(EXIT_BAD_INPUT)


def _fail(sentence: str, code: int) -> None:
    print(f"hsq: {sentence}", file=sys.stderr)
    raise SystemExit(code)


if __name__ == "__main__":
    main()
