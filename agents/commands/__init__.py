"""What the ``hsq`` command can do; each function is a command, its parameters are the command's flags."""

from typing import Any

from agents.commands.models import evaluate, export, info, monitor
from agents.commands.search import search
from agents.commands.training import finetune, shapes, teacher

COMMANDS: dict[str, Any] = {
    "search": search,
    "monitor": monitor,
    "evaluate": evaluate,
    "export": export,
    "info": info,
    "finetune": finetune,
    "teacher": teacher,
    "shapes": shapes,
}
