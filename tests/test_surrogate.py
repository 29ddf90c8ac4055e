"""The learned model of damages: against closed forms, and as an environment."""

from typing import Any

import numpy as np
import pytest
from tiny_task import TinyTask

from agents.baselines import planner as planner_module
from agents.baselines.planner import SurrogatePlanner
from agents.baselines.plans import cost_limit
from agents.dyna import learn_from_rollouts
from agents.explorer import Explorer
from agents.keep_best import KeepBest
from agents.rollout import rollout
from agents.search_log import SearchLog
from agents.surrogate import (
    CHOICE_FLOOR,
    NOISE_FLOOR,
    NOISE_SHARE,
    PRIOR_SLOPE,
    DamageModel,
    Guess,
    divergence,
    load,
    practice_env,
)
from hsq_env.env import HSQEnv

LAYERS, CHOICES = 5, 4


def tables(seed: int = 0) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    raw = 10.0 ** rng.uniform(-3, 0, (LAYERS, CHOICES))
    return raw, raw * rng.uniform(0.3, 1.0, raw.shape)


def make(tiny: TinyTask, **settings: Any) -> HSQEnv:
    rng = np.random.default_rng(0)
    table = np.sort(10.0 ** rng.uniform(-3, -1, (7, 12)), axis=1)[:, ::-1].copy()
    env = HSQEnv(tiny, step_minibatches=0, sensitivities=table, reward="divergence", alpha=0.0, beta=1.0, **settings)
    env._repaired = 0.8 * table
    return env


# ---- the model


def test_before_any_step_damages_are_in_proportion_to_the_sensitivity() -> None:
    raw, repaired = tables()
    model = DamageModel(raw, repaired)
    assert model.table(np.full(LAYERS, 0.7)) == pytest.approx(PRIOR_SLOPE * load(repaired))
    assert model.steps == 0


def test_steps_one_by_one_or_together_are_the_same_regression() -> None:
    raw, repaired = tables()
    rng = np.random.default_rng(1)
    layers, choices, before = rng.integers(LAYERS, size=20), rng.integers(CHOICES, size=20), rng.uniform(0, 3, 20)
    after = before + rng.uniform(0, 0.5, 20)
    one, other = DamageModel(raw, repaired), DamageModel(raw, repaired)
    one.add(layers, choices, before, after)
    for row in zip(layers, choices, before, after, strict=True):
        other.add(*([value] for value in row))
    assert one.steps == other.steps == 20
    assert one.weights() == pytest.approx(other.weights())
    x = one.features(layers, choices, before)
    noise = NOISE_FLOOR + NOISE_SHARE * load(repaired[layers, choices])
    prior = np.zeros(x.shape[1])
    prior[1] = PRIOR_SLOPE
    precision = np.eye(x.shape[1]) + (x / noise[:, None] ** 2).T @ x
    expected = prior + np.linalg.solve(precision, (x / noise[:, None] ** 2).T @ (after - before - x @ prior))
    assert one.weights() == pytest.approx(expected)


def test_what_is_measured_often_is_believed() -> None:
    raw, repaired = tables()
    model = DamageModel(raw, repaired)
    before = model.table(np.zeros(LAYERS))
    repaired = load(repaired)
    truth = 1.4 * repaired[2, 1]
    model.add([2] * 500, [1] * 500, [0.0] * 500, [truth] * 500)
    after = model.table(np.zeros(LAYERS))
    assert before[2, 1] == pytest.approx(PRIOR_SLOPE * repaired[2, 1]) and after[2, 1] == pytest.approx(truth, rel=0.05)
    assert (
        (after / repaired)[2].mean() > (after / repaired)[[0, 1, 3, 4]].mean() > PRIOR_SLOPE
    )  # the layer tells of itself


def test_draws_spread_where_nothing_was_measured() -> None:
    raw, repaired = tables()
    model = DamageModel(raw, repaired)
    model.add([2] * 200, [1] * 200, [0.0] * 200, [0.4] * 200)
    rng = np.random.default_rng(0)
    draws = np.stack([model.table(np.zeros(LAYERS), model.weights(rng)) for _ in range(300)])
    assert draws.mean(axis=0) == pytest.approx(model.table(np.zeros(LAYERS)), abs=0.15)
    known, unknown = draws[:, 2, 1].std(), draws[:, 2, 0].std()
    assert known < 0.3 * unknown and unknown > CHOICE_FLOOR
    assert (model.weights(rng, 0.0) == model.weights()).all()


def test_loads_add_up_and_are_divergences_again() -> None:
    values = np.array([0.0, 0.3, 1.0, 4.0])
    assert divergence(load(values)) == pytest.approx(values) and load([1.0, -0.5]).tolist() == [1.0, 0.0]
    both = divergence(load(1.0) + load(1.0))
    assert 1.0 < both < 2.0 and divergence(load(4.0) + load(0.1)) - 4.0 < 0.1 * (both - 1.0)  # less upon more


# ---- the environment made of it


def test_practice_is_the_environment_but_for_the_measurement(tiny: TinyTask) -> None:
    env = make(tiny, target_ratio=9.0)
    model = DamageModel(env.sensitivities, env.repaired_sensitivities)
    model.add([1, 2, 3], [4, 5, 6], [0.1, 0.4, 0.5], [0.4, 0.5, 0.9])
    practice = practice_env(env, model)
    rng = np.random.default_rng(2)
    for _ in range(3):
        (one, told), (other, same) = env.reset(), practice.reset()
        assert np.array_equal(one, other) and told["layer"] == same["layer"]
        loaded = 0.0
        for layer in range(7):
            action = int(rng.integers(12))
            executed = env.step(action)[4]
            *_, ended, _, info = practice.step(action)
            for name in ("executed_action", "ratio", "layer"):
                assert info[name] == executed[name]
            assert np.array_equal(info["action_mask"], executed["action_mask"])
            expected = model.damage([layer], [info["executed_action"]], [loaded])[0]
            loaded = max(0.0, loaded + float(expected))
            assert info["divergence"] == pytest.approx(divergence(loaded))
            assert ended == (layer == 6)
    assert env.steps_taken[0] == 21 and env.index == 7  # practice has touched nothing
    assert practice.compressor is not env.compressor and isinstance(practice.compressor, Guess)


# ---- the planner


def played(env: HSQEnv, *plans: list[int]) -> SurrogatePlanner:
    planner, log = SurrogatePlanner(env, seed=0), SearchLog(lambda line: None)
    for plan in plans:
        learn_from_rollouts(planner, rollout(KeepBest(env), plan, "given", log))
    return planner


def test_every_step_counts_once(tiny: TinyTask) -> None:
    planner = played(make(tiny), [8] * 7, [8] * 4 + [4] * 3, [8] * 7)
    assert planner.model.steps == 7 + 3


def test_the_best_plan_is_remembered_for_every_target_that_it_reaches(tiny: TinyTask) -> None:
    env = make(tiny, target_ratio=(5.0, 9.0))
    planner = SurrogatePlanner(env, seed=0)
    planner.learn([4] * 7, [0.1] * 7, 5.0, 6.0)
    assert set(planner.best) == {5.0}
    planner.learn([3] * 7, [0.05] * 7, 9.0, 12.0)
    assert [planner.best[t].choices for t in (5.0, 9.0)] == [[3] * 7] * 2 and planner.best[5.0].load == load(0.05)
    planner.learn([2] * 7, [0.3] * 7, 9.0, 10.0)
    assert planner.best[9.0].choices == [3] * 7


@pytest.mark.parametrize("target", [6.0, 10.0])
def test_probes_and_plans_fit_the_budget_and_are_new(tiny: TinyTask, target: float) -> None:
    env = make(tiny, target_ratio=target)
    planner = SurrogatePlanner(env, seed=0)
    assert planner.next(target) is None
    learn_from_rollouts(planner, rollout(KeepBest(env), [4] * 7, "given", SearchLog(lambda line: None)))
    best = planner.best[target].choices
    probes = planner.probes(target, 10)
    assert 0 < len(probes) <= 10 and [len(p) for p in probes] == sorted(len(p) for p in probes)
    for probe in probes:
        at = len(probe) - 1
        assert probe[:at] == best[:at] and probe[at] != best[at]
        assert env.budget.mask(at, sum(int(env.sizes[k, c]) for k, c in enumerate(probe[:at])))[probe[at]]
    plans = [plan for plan in (planner.propose(target) for _ in range(5)) if plan is not None]
    assert plans and all(sum(env.sizes[range(7), plan]) <= env.budget.limit for plan in plans)
    assert len({tuple(plan) for plan in plans}) == len(plans)


def test_without_a_budget_a_plan_may_begin_with_more_than_plans_take(tiny: TinyTask) -> None:
    env = make(tiny)  # plans take what an average one does, and the best one more
    largest = [int(i) for i in env.sizes.argmax(axis=1)]
    planner = played(env, largest)
    assert sum(env.sizes[k, c] for k, c in enumerate(largest)) > cost_limit(env)
    assert planner.propose(None, largest[:6]) is None
    plan = planner.propose(None, largest[:1])
    assert plan is not None and sum(env.sizes[k, c] for k, c in enumerate(plan)) <= cost_limit(env)


def test_without_a_new_idea_the_agent_is_asked(tiny: TinyTask, monkeypatch: pytest.MonkeyPatch) -> None:
    env = make(tiny, target_ratio=9.0)
    planner = played(env, [4] * 7)
    monkeypatch.setattr(planner, "probes", lambda target, count: [])
    monkeypatch.setattr(planner_module, "integer_program", lambda costs, sizes, limit: np.full(len(costs), 3))
    first, best = planner.next(9.0), planner.best[9.0].choices
    assert first is not None and first.choices == best[:5] + [3] * 2  # late changes first
    second = planner.next(9.0)
    assert second is not None and second.choices == best[:3] + [3] * 4
    planner.learn([3], [1e9], 9.0, None)
    assert planner.next(9.0) is None  # what is left would end where it is known to
    assert planner.next(9.0) is None  # and nothing is new


def a_plan_begun(
    tiny: TinyTask, monkeypatch: pytest.MonkeyPatch
) -> tuple[SurrogatePlanner, list[int], list[float], list[int]]:
    """A planner that has proposed a plan; the best before, where that stood after each layer, and the plan.

    The program's next plan would end as the best one does.
    """
    planner = played(make(tiny, target_ratio=9.0), [4] * 7)
    best = planner.best[9.0].choices
    stood = [planner._seen[tuple(best[: k + 1])] for k in range(7)]
    monkeypatch.setattr(planner, "probes", lambda target, count: [])
    monkeypatch.setattr(planner_module, "STARTS", (0.45,))
    monkeypatch.setattr(planner_module, "integer_program", lambda costs, sizes, limit: np.full(len(costs), 3))
    first = planner.next(9.0)
    assert first is not None and first.choices == best[:3] + [3] * 4
    monkeypatch.setattr(planner_module, "integer_program", lambda costs, sizes, limit: np.array(best[-len(costs) :]))
    return planner, best, stood, first.choices


def test_what_was_good_of_a_plan_is_gone_on_with(tiny: TinyTask, monkeypatch: pytest.MonkeyPatch) -> None:
    planner, best, stood, plan = a_plan_begun(tiny, monkeypatch)
    better = [*stood[:3], 0.9 * stood[3], 0.9 * stood[4], 10 * stood[5]]  # fails at the last but one layer
    planner.learn(plan[:6], better, 9.0, None)
    second = planner.next(9.0)
    assert second is not None and second.choices == plan[:5] + best[5:]
    assert second.ceilings[:5] == [np.inf] * 5 and np.isfinite(second.ceilings[5:]).all()
    planner.learn(second.choices, [*better[:5], 0.95 * stood[5], 0.95 * stood[6]], 9.0, 9.5)
    assert planner.best[9.0].choices == second.choices and not planner._good


def test_what_was_no_better_is_not_gone_on_with(tiny: TinyTask, monkeypatch: pytest.MonkeyPatch) -> None:
    planner, best, stood, plan = a_plan_begun(tiny, monkeypatch)
    planner.learn(plan[:6], [*stood[:3], 1.1 * stood[3], 1.2 * stood[4], 10 * stood[5]], 9.0, None)
    assert planner._good == {9.0: plan[:5]} and planner.next(9.0) is None
    planner.learn([*best[:2], 5], [*stood[:2], stood[6]], 9.0, None)  # a probe is no plan
    assert not planner._good


def test_beliefs_are_drawn_where_the_most_likely_was_tried(tiny: TinyTask, monkeypatch: pytest.MonkeyPatch) -> None:
    planner = played(make(tiny, target_ratio=9.0), [4] * 7)
    spreads: list[float] = []
    weights = planner.model.weights
    monkeypatch.setattr(
        planner.model, "weights", lambda rng=None, spread=1.0: (spreads.append(spread), weights(rng, spread))[1]
    )
    monkeypatch.setattr(planner_module, "integer_program", lambda costs, sizes, limit: np.full(len(costs), 3))
    assert planner.propose(9.0) == [3] * 7 and spreads == [0.0]
    assert planner.propose(9.0) is None and spreads == [0.0, 0.0, *planner_module.DRAWS]


def test_a_plan_is_given_up_where_it_cannot_win_any_more(tiny: TinyTask) -> None:
    env = make(tiny, target_ratio=9.0)
    planner = SurrogatePlanner(env, seed=0)
    stood = [0.1, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8]
    planner.learn([4] * 7, stood, 9.0, 10.0)
    best, slack = planner.best[9.0], load(0.8) * planner_module.SLACK
    assert planner._ceilings(best, [4] * 7) == pytest.approx(divergence(load(stood) + slack))
    assert planner.patience(9.0) == pytest.approx(divergence(load(stood) + load(0.8) * planner_module.PATIENCE))
    assert planner.patience(5.0) == []  # nothing known
    damages = planner._damages(best)
    assert damages[range(7), [4] * 7] == pytest.approx(np.diff([0.0, *load(stood)]))
    hope = damages[5, 3] - damages[5, 4]  # of another choice in the last but one layer
    expected = load(stood) + slack - np.array([hope] * 5 + [0.0] * 2)
    assert planner._ceilings(best, [4, 4, 4, 4, 4, 3, 4]) == pytest.approx(divergence(expected))


def test_probes_are_spread_over_layers(tiny: TinyTask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner_module, "OPTIMISM", 1000.0)  # everything may be worth a look
    planner = played(make(tiny, target_ratio=6.0), [4] * 7)
    lengths = [len(probe) for probe in planner.probes(6.0, 100)]
    assert max(lengths.count(n) for n in lengths) == planner_module.LAYER_PROBES and len(set(lengths)) >= 6


def test_what_was_probed_is_not_probed_again(tiny: TinyTask) -> None:
    env = make(tiny, target_ratio=9.0)
    planner = played(env, [4] * 7)
    proposal = planner.next(9.0)
    assert proposal is not None and len(proposal.choices) <= 7
    first = proposal.choices
    planner.learn(first, [0.1 * (k + 1) for k in range(len(first))], 9.0, None)
    assert planner.best[9.0].choices == played(env, [4] * 7).best[9.0].choices  # a probe is no plan
    assert first not in planner.probes(9.0, 100)


def test_deviations_shrink_where_something_was_measured() -> None:
    raw, repaired = tables()
    model = DamageModel(raw, repaired)
    before = model.deviations(np.zeros(LAYERS))
    model.add([2], [1], [0.0], [0.4])
    after = model.deviations(np.zeros(LAYERS))
    assert (after <= before + 1e-12).all() and after[2, 1] < 0.5 * before[2, 1]
    draws = np.stack([model.table(np.zeros(LAYERS), model.weights(np.random.default_rng(i))) for i in range(2000)])
    assert draws.std(axis=0) == pytest.approx(after, rel=0.1)


def test_a_planner_finds_what_a_table_hides(tiny: TinyTask) -> None:
    """The table says that the choices of all layers are alike; measuring shows that they are not."""
    env = make(tiny, target_ratio=9.0)
    env.sensitivities[:] = env._repaired[:] = env.sensitivities.mean(axis=0)  # type: ignore[index]
    log = SearchLog(lambda line: None)
    Explorer("planner", episodes=None, evaluations=150).run(env, log)
    assert min(e.divergence for e in log.episodes) < 0.9 * log.episodes[0].divergence
    assert 50 < env.evaluations <= 150


# ---- the agent
