"""The end of an agent's search: its best plans beside the cheap baselines', each after some fine-tuning of everything.

A step measures a student whose layers were repaired one after the other, briefly. What is wanted is a student that was
fine-tuned at length, and a lower divergence of the one does not always mean a lower one of the other: an agent can
lower the first by plans that suit the brief repair. So a few plans are fine-tuned as a whole, with equal minibatches,
and the one whose divergence is smallest then is the search's plan. It costs evaluations like everything else.
"""

import time
from collections.abc import Sequence

from agents.baselines import BASELINES
from agents.callbacks import Episode
from agents.explore import SearchLog, executed_choices
from agents.finalists import finetuned_student
from hsq_env.choices import Plan
from hsq_env.env import HSQEnv

STEPS = 40  # of the fine-tuning; enough to order the plans of the embedded task's largest ratio as 150 do
OWN_PLANS = 2  # the agent's best
WHOLE_NETWORK = 2  # what a minibatch through all layers costs, in minibatches of a step, which train a block
REPAIRED = ("ilp_repaired", "ilp_loads")  # baselines that need the sensitivities after a repair


def entrants(warm_start: Sequence[str]) -> tuple[str, ...]:
    """Baselines whose plans take part: those that cost nothing besides the tables that the search has anyway."""
    return ("ilp", *(REPAIRED if set(REPAIRED) & set(warm_start) else ()))


def price(env: HSQEnv, steps: int) -> int:
    """Evaluations that one plan's fine-tuning counts as: those whose repairs take as long."""
    return -(-steps * WHOLE_NETWORK // max(1, env.compressor.repair.steps))


def reserved(env: HSQEnv, steps: int, warm_start: Sequence[str]) -> int:
    """Evaluations that the playoffs of all targets may take."""
    return len(env.budgets) * (len(entrants(warm_start)) + OWN_PLANS) * price(env, steps) if steps else 0


def playoff(env: HSQEnv, log: SearchLog, steps: int, warm_start: Sequence[str], seed: int = 0) -> None:
    """Fine-tune the entrants of every target and note what they are worth then in ``log.played_off``.

    :param steps: gradient steps
    :param warm_start: baselines that the search began with
    """
    for target in env.budgets:
        env.target_ratio = target
        for plan, source in _plans(env, log, target, warm_start, seed).items():
            started = time.monotonic()
            student = finetuned_student(env, plan, steps, f"{source} for the playoff")
            env.charge(price(env, steps))
            accuracy, divergence = env.compressor.judge.measure_anew(student.stages)
            ratio = _ratio(env, plan)
            seconds = round(time.monotonic() - started, 2)
            log.played_off.append(Episode(source, plan, 0.0, accuracy, ratio, seconds, divergence, target))
            log.say(f"playoff ({source}): divergence {divergence:.3f} after {steps} fine-tuning steps")


def _plans(env: HSQEnv, log: SearchLog, target: float | None, warm_start: Sequence[str], seed: int) -> dict[Plan, str]:
    """Different plans and where they came from, the agent's own first."""
    plans = {episode.plan: episode.source for episode in log.best_plans(OWN_PLANS, target)}
    names = tuple(info.name for info in env.layers)
    for name in entrants(warm_start):
        choices = BASELINES[name](env, seed).propose()
        assert choices is not None  # programs have a plan wherever any plan fits
        plans.setdefault(Plan(names, tuple(env.choices[i] for i in choices)), name)
    return plans


def _ratio(env: HSQEnv, plan: Plan) -> float:
    spent = sum(int(env.sizes[layer, choice]) for layer, choice in enumerate(executed_choices(env, plan)))
    return env.teacher_bytes / (spent + env.fixed_bytes)
