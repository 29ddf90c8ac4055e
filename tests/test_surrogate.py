"""The learned model of damages: against closed forms, and as an environment."""

import copy
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv
from tiny_task import TinyTask

from agents.algorithms import make_agent
from agents.baselines import planner as planner_module
from agents.baselines.planner import SurrogatePlanner
from agents.baselines.plans import cost_limit
from agents.dyna import Dyna, learn_from_rollouts
from agents.explorer import Explorer
from agents.keep_best import KeepBest
from agents.return_to_best import ReturnToBest
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
from hsq_env.self_evaluation import SelfEvaluation

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


def test_an_agent_practises_and_tries_proposals(tiny: TinyTask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner_module, "PROBES", 0)
    env = make(tiny, target_ratio=9.0)
    planner = played(env, [4] * 7)
    wrapped = ReturnToBest(KeepBest(env), seed=0)
    agent: Any = make_agent("dqn", wrapped)
    dyna = Dyna(planner, first=3, each=2, gradient_steps=1, proposals=1.0)
    proposed: list[list[int]] = []
    follow = wrapped.follow

    def note(choices: list[int], ceilings: list[float]) -> None:
        proposed.append(choices)
        follow(choices, [np.inf] * 7)

    wrapped.follow = note  # type: ignore[method-assign]
    agent.learn(14, callback=dyna)
    assert dyna.practised == 3 + 2 * 2
    assert agent.replay_buffer.size() == 14  # imagined steps are kept apart
    assert dyna._replay.size() == 7 * 7
    executed = agent.replay_buffer.actions[:14, 0, 0].reshape(2, 7).tolist()
    assert executed == proposed[:2] and len(proposed) == 3


def test_probes_cost_one_evaluation_each(tiny: TinyTask) -> None:
    env = make(tiny, target_ratio=9.0)
    planner = played(env, [4] * 7)
    wrapped = ReturnToBest(KeepBest(env), seed=0)
    agent: Any = make_agent("dqn", wrapped)
    # the probes of one round; plans, which may be played to their end, come after them
    before, steps = env.evaluations, planner.model.steps
    agent.learn(20, callback=Dyna(planner, first=0, each=0, proposals=1.0))
    ends = np.flatnonzero(agent.replay_buffer.dones[:20, 0])
    assert len(ends) >= 4 and agent.replay_buffer.timeouts[ends, 0].all()  # given up, so that values are bootstrapped
    assert planner.model.steps - steps <= env.evaluations - before
    assert env.evaluations - before <= len(ends) + 1


def test_without_proposals_the_agent_decides(tiny: TinyTask) -> None:
    env = make(tiny, target_ratio=9.0)
    agent: Any = make_agent("dqn", ReturnToBest(KeepBest(env), seed=0))
    dyna = Dyna(played(env, [4] * 7), first=0, each=0, proposals=0.0)
    before = {name: tensor.clone() for name, tensor in agent.policy.state_dict().items()}
    agent.learn(7, callback=[dyna])
    assert dyna.practised == 0 and any((agent.policy.state_dict()[n] != t).any() for n, t in before.items())


def test_a_search_with_a_surrogate_keeps_its_budget(tiny: TinyTask) -> None:
    env, log = make(tiny, target_ratio=9.0), SearchLog(lambda line: None)
    Explorer("dqn", episodes=None, evaluations=40).run(env, log)
    assert 35 <= env.evaluations <= 40
    assert min(e.divergence for e in log.episodes) <= log.episodes[0].divergence


def greedy_return(agent: Any, env: HSQEnv, model: DamageModel) -> float:
    """Of the agent in the model, as the model believes."""
    practice = practice_env(env, model)
    observation, _ = practice.reset()
    total, ended = 0.0, False
    while not ended:
        action, _ = agent.predict(observation, deterministic=True)
        observation, reward, ended, _, _ = practice.step(action)
        total += float(reward)
    return total


def test_practice_does_not_unlearn_the_best_plan(tiny: TinyTask) -> None:
    """And the target network follows it, which Stable-Baselines3 does by steps of the environment alone."""
    env = make(tiny, target_ratio=9.0)
    planner = played(env, [4] * 7)
    agent: Any = make_agent("dqn", ReturnToBest(KeepBest(env), seed=0), seed=0)
    target = {name: tensor.clone() for name, tensor in agent.q_net_target.state_dict().items()}
    dyna = Dyna(planner, first=100, each=0, proposals=1.0)
    agent.learn(1, callback=dyna)
    assert any((agent.q_net_target.state_dict()[name] != tensor).any() for name, tensor in target.items())
    practice = practice_env(env, planner.model)
    practice.reset()
    best = sum(float(practice.step(choice)[1]) for choice in planner.best[9.0].choices)
    assert greedy_return(agent, env, planner.model) >= best - 1e-6


@pytest.mark.parametrize("name", ["td3", "ddpg"])
def test_workers_with_noise_practise(tiny: TinyTask, name: str) -> None:
    """Stable-Baselines3 draws noise for all of them at once then."""
    env = make(tiny, target_ratio=9.0, action_space="continuous")
    both = DummyVecEnv([lambda i=i: ReturnToBest(KeepBest(env.fork()), seed=i) for i in range(2)])  # type: ignore[misc]
    agent: Any = make_agent(name, both, seed=0, policy_kwargs={"net_arch": [16]})
    dyna = Dyna(played(env, [4] * 7), first=2, each=0, gradient_steps=1)
    agent.learn(4, callback=dyna)
    assert dyna.practised == 2


def test_the_first_practice_explores(tiny: TinyTask) -> None:
    """Though Stable-Baselines3 says nothing of exploration before the first real step."""
    env = make(tiny, target_ratio=9.0)
    agent: Any = make_agent("dqn", ReturnToBest(KeepBest(env), seed=0), seed=0, exploration_initial_eps=0.5)
    dyna = Dyna(played(env, [4] * 7), first=20, each=0, gradient_steps=1)
    agent.learn(1, callback=dyna)
    assert len(np.unique(dyna._replay.actions[:140, 0, 0].reshape(20, 7), axis=0)) > 10


def test_examples_are_none_where_actions_say_alpha(tiny: TinyTask) -> None:
    """Which alphas a plan was played with the model does not know."""
    env = make(tiny, target_ratio=9.0, alpha_control="agent")
    agent: Any = make_agent("dqn", ReturnToBest(KeepBest(env), seed=0), seed=0)
    dyna = Dyna(played(env, [4] * 7), first=0, each=0)
    dyna.init_callback(agent)
    assert dyna._known(agent, practice_env(env, dyna.planner.model)) is None
    other = make(tiny, target_ratio=9.0)
    dyna = Dyna(played(other, [4] * 7), first=0, each=0)
    agent = make_agent("dqn", ReturnToBest(KeepBest(other), seed=0), seed=0)
    known = dyna._known(agent, practice_env(other, dyna.planner.model))
    assert known.actions[:7, 0, 0].tolist() == dyna.planner.best[9.0].choices and not known.full


def test_noise_explores_in_practice_too(tiny: TinyTask) -> None:
    env = make(tiny, target_ratio=9.0, action_space="continuous")
    agent: Any = make_agent("td3", ReturnToBest(KeepBest(env), seed=0), seed=0, policy_kwargs={"net_arch": [16]})
    dyna = Dyna(played(env, [4] * 7), first=0, each=0)
    dyna.init_callback(agent)
    observation, _ = env.reset()
    drawn = np.array([dyna._explored(observation) for _ in range(20)])
    assert len(np.unique(drawn, axis=0)) > 10 and abs(drawn).max() <= 1


def test_where_another_reward_counts_nobody_practises(tiny: TinyTask) -> None:
    """The model knows no accuracy: what it would say of one is a guess."""
    env = make(tiny, target_ratio=9.0)
    env.reward = "paper"
    agent: Any = make_agent("dqn", ReturnToBest(KeepBest(env), seed=0))
    dyna = Dyna(played(env, [4] * 7), first=3, each=2)
    agent.learn(8, callback=dyna)
    assert dyna.practised == 0


@pytest.mark.parametrize(
    ("settings", "surrogate"),
    [({"target_ratio": 9.0}, True), ({"target_ratio": [6.0, 9.0]}, True), ({"target_ratio": None}, False)],
)
def test_a_surrogate_needs_a_budget(tiny: TinyTask, settings: dict[str, Any], surrogate: bool) -> None:
    env = make(tiny, **settings)
    loop = SelfEvaluation(0.9, 9.0)
    assert Explorer("dqn").has_surrogate(env) is surrogate
    timed = copy.copy(env)
    timed.budgets = {None: make(tiny, target_ratio=9.0).budgets[9.0]}  # of milliseconds, beside no ratio
    assert Explorer("dqn").has_surrogate(timed)
    assert not Explorer("dqn", self_evaluation=loop).has_surrogate(env)
    for other in (Explorer("ppo"), Explorer("haq"), Explorer("ilp"), Explorer("dqn", warm_start=())):
        assert not other.has_surrogate(env)
