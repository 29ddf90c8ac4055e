"""How flags read in help."""

import functools
import inspect
from collections.abc import Callable
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import tyro


def plain(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command, in whose help a flag that need not be given reads like another: PATH, not {None}|PATH."""
    hints = get_type_hints(command, include_extras=True)
    parameters = []
    for parameter in inspect.signature(command).parameters.values():
        hint = hints[parameter.name]
        if NoneType in get_args(hint):
            needless = parameter.default is None  # its docstring says what happens without
            shown = tyro.conf.arg(
                metavar=_metavar(hint) if needless else f"{_metavar(hint)}|None",
                help_behavior_hint="" if needless else None,
            )
            hint = Annotated[hint, shown]
        parameters.append(parameter.replace(annotation=hint))

    @functools.wraps(command)
    def called(*args: Any, **kwargs: Any) -> Any:
        return command(*args, **kwargs)

    del called.__wrapped__
    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return called


def _metavar(hint: Any) -> str:
    """What stands for the value of a flag in help, None apart."""
    inner = next(kind for kind in get_args(hint) if kind is not NoneType)
    if get_origin(inner) is Literal:
        return "{" + ",".join(map(str, get_args(inner))) + "}"
    if get_origin(inner) is tuple:
        names = [kind.__name__.upper() for kind in get_args(inner) if kind is not Ellipsis]
        return f"{names[0]} [{names[0]} ...]" if Ellipsis in get_args(inner) else " ".join(names)
    return str(inner.__name__).upper()
