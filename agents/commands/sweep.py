"""``hsq sweep``."""

import functools
from pathlib import Path
from typing import Any

import tyro
from tyro.conf import Positional

from agents.commands.search import PHOTOS, SHAPES, search
from agents.flags import plain
from detectors.errors import InputError


def sweep(
    flags: Positional[tuple[str, ...]] = (),
    *,
    out: Path,
    target_ratio: tuple[float, ...] = (),
    seed: tuple[int, ...] = (),
    reward: tuple[str, ...] = (),
    detector: tuple[str, ...] = (),
    algo: tuple[str, ...] = (),
    trials: int | None = None,
    ray: str = "local",
    at_once: int = 2,
    gpus_per_trial: float = 0.0,
    stop_hopeless: bool = True,
    json: bool = False,
) -> None:
    """Run many searches at once and show which lie on the front of size and accuracy.

    Every combination of the values given is a search in a folder of its own in OUT, one processor core each. Called
    again, an interrupted sweep goes on. Needs pip install -e '.[ray]'.

    Example: hsq sweep --out sweep --target-ratio 6 10 14 --seed 0 1 -- --episodes 50 --dataset photos/
    Example: hsq sweep --out sweep --algo dqn ilp local --at-once 4

    :param flags: of hsq search, the same for all, behind "--"
    :param out: a folder for all runs, and for sweep.json
    :param target_ratio: each a hard budget
    :param seed: of agents
    :param reward: divergence, size, energy, ...
    :param detector: names of detectors, each with its own COCO weights
    :param algo: agents or baselines
    :param trials: how many of the combinations are tried, drawn at random; all if not given
    :param ray: address of a Ray cluster, "auto" for the one of this machine, "local" for none but this machine
    :param at_once: searches side by side
    :param gpus_per_trial: share of a GPU of each
    :param stop_hopeless: end searches early that are behind others with the same target
    :param json: print what OUT/sweep.json holds in place of the table; all else goes to standard error
    """
    from agents.output import aside
    from agents.tables import print_sweep
    from agents.workers import missing_ray

    try:
        from agents.sweep import Sweep, run_sweep
    except ImportError as error:
        raise missing_ray() from error

    axes: dict[str, list[Any]] = {
        name: list(values)
        for name, values in (
            ("target_ratio", target_ratio),
            ("seed", seed),
            ("reward", reward),
            ("detector", detector),
            ("algo", algo),
        )
        if values
    }
    given = _arguments(flags)
    for name in ("out", "resume", "ray", "json", *axes):
        if name in given:
            raise InputError(f"--{name.replace('_', '-')} is the sweep's own: leave it out behind '--'.")
    if "algo" in axes and "continue_from" in given:
        raise InputError("--continue-from names the agent: leave out --algo.")
    with aside(json):
        rows = run_sweep(Sweep(axes, given, trials, ray, at_once, gpus_per_trial, stop_hopeless), out)
    print_sweep(rows, out, as_json=json)


def _arguments(flags: tuple[str, ...]) -> dict[str, Any]:
    """What flags of ``hsq search`` say, without what they do not."""

    @functools.wraps(search)
    def collected(*positional: Any, **named: Any) -> dict[str, Any]:
        return named

    found: dict[str, Any] = tyro.cli(plain(collected), prog="hsq sweep ... --", args=list(flags))
    usual: dict[str, Any] = tyro.cli(collected, args=[])
    made = {name: value for name, value in found.items() if value != usual[name]}
    for name in ("dataset", "teacher", "latency_table", "continue_from"):
        if made.get(name) not in (None, SHAPES, PHOTOS) and Path(made[name]).exists():
            made[name] = str(Path(made[name]).resolve())  # trials run in other folders
    return made
