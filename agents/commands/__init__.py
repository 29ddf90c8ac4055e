"""What the ``hsq`` command can do; each function is a command, its parameters are the command's flags."""

from typing import Any

from agents.commands.models import bench, evaluate, export, info, latency, leaderboard, monitor, validate
from agents.commands.reports import report
from agents.commands.search import search
from agents.commands.shell import completion
from agents.commands.sweep import sweep
from agents.commands.training import data, finetune, shapes, teacher
from agents.doctor import doctor

COMMANDS: dict[str, Any] = {
    "search": search,
    "sweep": sweep,
    "monitor": monitor,
    "evaluate": evaluate,
    "export": export,
    "bench": bench,
    "latency": latency,
    "info": info,
    "report": report,
    "validate": validate,
    "leaderboard": leaderboard,
    "finetune": finetune,
    "teacher": teacher,
    "shapes": shapes,
    "data": data,
    "doctor": doctor,
    "completion": completion,
}
