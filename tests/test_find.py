"""Every agent and every baseline looks for plans on the tiny task."""

import math
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.base_class import BaseAlgorithm
from test_algorithms import SMALL as UPDATES
from tiny_task import TinyTask

from agents.algorithms import ALGORITHMS, make_agent
from agents.baselines import BASELINES
from agents.explorer import Explorer
from agents.rollout import Transition
from agents.run_folder import RunFolder
from agents.search_log import SearchLog
from agents.workers import Cluster
from detectors.errors import InputError
from hsq_env.env import HSQEnv

SMALL = {  # networks that learn in milliseconds
    name: {**arguments, "policy_kwargs": {"net_arch": [32, 32]}} if name in ("sac", "td3", "ddpg") else arguments
    for name, arguments in UPDATES.items()
}
ONE_PLAN = ("greedy", "ilp", "ilp_repaired", "ilp_loads")


def nothing(message: str) -> None:
    """Says nothing."""


def make_env(tiny: TinyTask, explorer: Explorer, **arguments: Any) -> HSQEnv:
    settings = {"target_ratio": 6.0, "step_minibatches": 0, "reward": "divergence", "beta": 1.0, **arguments}
    return HSQEnv(tiny, action_space=explorer.action_space(), **settings)


def explore(tiny: TinyTask, explorer: Explorer, **arguments: Any) -> tuple[HSQEnv, SearchLog]:
    explorer.check()
    env, log = make_env(tiny, explorer, **arguments), SearchLog(nothing)
    explorer.run(env, log)
    return env, log


@pytest.fixture
def not_forever() -> Iterator[None]:
    """Ends a search that never does: by the time that it computes, whatever else the machine does."""

    def stop(*arguments: Any) -> None:
        raise AssertionError("the search hangs")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, 30)
    yield
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    signal.signal(signal.SIGVTALRM, before)


def search_with(algo: str, **settings: Any) -> Explorer:
    """Without practice in a model, which takes longer than a search on the tiny task."""
    return Explorer(algo, **{"surrogate": False, **settings})


def history(log: SearchLog) -> list[Any]:
    return [{**episode.to_json(), "seconds": 0} for episode in log.episodes]


def check_plans(tiny: TinyTask, log: SearchLog) -> None:
    """Every episode is what a fresh environment gives for its plan, and meets its target."""
    assert log.episodes
    env = HSQEnv(tiny, step_minibatches=0)
    for episode in log.episodes:
        assert episode.target_ratio is not None and episode.ratio >= episode.target_ratio
        env.reset()
        for choice in episode.plan.choices:
            info = env.step(env.choices.index(choice))[4]
        assert info["plan"] == episode.plan and info["ratio"] == episode.ratio
        assert (info["accuracy"], info["divergence"]) == (episode.accuracy, episode.divergence)


# ---- baselines


@pytest.mark.parametrize("name", sorted(BASELINES))
def test_every_baseline_finds_plans_within_its_evaluations(tiny: TinyTask, name: str) -> None:
    env, log = explore(tiny, Explorer(name, seed=1, episodes=None, evaluations=31), table_megabytes=0)
    check_plans(tiny, log)
    assert {episode.source for episode in log.episodes} == {name}
    whole = 1 if name in (*ONE_PLAN, "planner") else 4  # a planner spends what is left on beginnings
    assert len(log.episodes) == whole
    assert env.evaluations == log.steps == (7 if name in ONE_PLAN else 31)  # the last three were for nothing


@pytest.mark.parametrize("name", ["random", "tpe", "nsga2", "local"])
def test_the_same_seed_finds_the_same(tiny: TinyTask, name: str) -> None:
    one, same, other = (explore(tiny, Explorer(name, seed=s, episodes=6))[1] for s in (1, 1, 2))
    assert len(one.episodes) == 6
    assert history(one) == history(same) != history(other)


def test_targets_share_the_seconds_of_a_baseline(tiny: TinyTask, monkeypatch: pytest.MonkeyPatch) -> None:
    """What making a baseline takes does not count."""
    clock, seen = [0.0], []
    make = BASELINES["random"]

    def made(*given: Any) -> Any:
        clock[0] += 50.0
        return make(*given)

    def played(*given: Any) -> None:
        deadline = given[5]
        seen.append(deadline - clock[0])
        clock[0] = min(deadline, clock[0] + 10.0)

    monkeypatch.setitem(BASELINES, "random", made)
    monkeypatch.setattr("agents.explorer.play", played)
    monkeypatch.setattr("agents.explorer.time", SimpleNamespace(monotonic=lambda: clock[0]))
    explore(tiny, Explorer("random", episodes=None, time_budget=60.0), target_ratio=(4.0, 5.0, 6.0))
    assert seen == [20.0, 25.0, 40.0]


def test_a_baseline_stops_at_its_seconds(tiny: TinyTask) -> None:
    _, log = explore(tiny, Explorer("random", episodes=None, time_budget=0.0))
    assert log.episodes == []


@pytest.mark.usefixtures("not_forever")
@pytest.mark.parametrize("name", sorted(BASELINES))
def test_baselines_serve_every_target(tiny: TinyTask, name: str) -> None:
    _, log = explore(tiny, Explorer(name, seed=1, episodes=12), target_ratio=(6.0, 10.0))
    check_plans(tiny, log)
    assert {episode.target_ratio for episode in log.episodes} == {6.0, 10.0}


def test_the_same_seed_finds_the_same_for_several_targets(tiny: TinyTask) -> None:
    runs = [explore(tiny, Explorer("random", seed=1, episodes=8), target_ratio=(6.0, 10.0))[1] for _ in range(3)]
    assert history(runs[0]) == history(runs[1]) == history(runs[2])


@pytest.mark.usefixtures("not_forever")
@pytest.mark.parametrize("name", sorted(BASELINES))
def test_baselines_end_where_only_one_plan_fits(tiny: TinyTask, name: str) -> None:
    largest = HSQEnv(tiny).budget.largest_ratio
    _, log = explore(tiny, Explorer(name, seed=1, episodes=3), target_ratio=largest)
    if name != "uniform":  # 2 bits at the same sparsity everywhere may be too large
        check_plans(tiny, log)
        assert {episode.ratio for episode in log.episodes} == {largest}


# ---- agents


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_every_agent_finds_plans_within_its_evaluations(tiny: TinyTask, name: str) -> None:
    """Seven evaluations for the seed, twice seven for the agent, three for nothing."""
    arguments = SMALL.get(name, {})
    explorer = search_with(name, episodes=None, evaluations=24, warm_start=("ilp",), arguments=arguments)
    env, log = explore(tiny, explorer, table_megabytes=0)
    check_plans(tiny, log)
    first = name if ALGORITHMS[name].as_published else "ilp"  # which learns from its own episodes alone
    assert [episode.source for episode in log.episodes] == [first, name, name]
    assert env.evaluations == 24


def test_a_budget_that_the_seeds_use_up(tiny: TinyTask) -> None:
    env, log = explore(tiny, search_with("dqn", evaluations=10, warm_start=("ilp", "greedy", "uniform")))
    check_plans(tiny, log)
    assert "dqn" not in {episode.source for episode in log.episodes} and env.evaluations == 10


def test_equal_seeds_are_rolled_out_once(tiny: TinyTask) -> None:
    _, log = explore(tiny, search_with("dqn", episodes=0, warm_start=("ilp", "ilp", "uniform")))
    assert [episode.source for episode in log.episodes] == ["ilp", "uniform"]
    assert len(set(log.episodes[1].plan.choices)) == 1


def test_an_agent_starts_behind_the_seeds_plan(tiny: TinyTask) -> None:
    """Followed up to a random layer, so that much of what it does was measured before."""
    explorer = search_with("dqn", episodes=6, warm_start=("ilp",))
    env, log = explore(tiny, explorer)
    assert env.steps_taken[0] == 7 * 7 and log.steps == 7 * 7
    assert env.evaluations == log.steps - log.visited_steps < 7 * 4
    assert explorer.returns and not Explorer("dqn", return_to_best=False).returns
    assert not Explorer("maskable_ppo").returns and not Explorer("local").returns


def test_workers_share_the_evaluations(tiny: TinyTask) -> None:
    """Each gets half of what the seed leaves, and both spend it at one pace."""
    explorer = search_with("dqn", episodes=None, evaluations=7 + 2 * 9, workers=2, warm_start=("ilp",))
    env, log = explore(tiny, explorer, table_megabytes=0)
    check_plans(tiny, log)
    assert [episode.source for episode in log.episodes] == ["ilp", "dqn", "dqn"]
    assert env.evaluations == 7 and log.steps - log.visited_steps == 7 + 2 * 9


def test_workers_leave_less_than_one_evaluation_each(tiny: TinyTask) -> None:
    """Although one meets more of what it knows than another."""
    explorer = search_with("dqn", episodes=None, evaluations=150, workers=3, warm_start=("ilp",))
    _, log = explore(tiny, explorer)
    assert 150 - 3 < log.steps - log.visited_steps <= 150


def test_following_a_plan_stays_within_the_evaluations(tiny: TinyTask) -> None:
    """The agent asks for what was measured, the plan to follow was not."""
    explorer, log = search_with("dqn"), SearchLog(nothing)
    env = make_env(tiny, explorer, target_ratio=None)
    outer: Any = explorer._wrapping(env, log, 7)(env, 0)
    outer.reset()
    for _ in range(7):
        outer.step(8)
    outer.get_wrapper_attr("know")([2] * 7, 1e9, None)
    outer.reset()
    outer.step(8)
    assert env.evaluations == 7


# ---- several targets


@pytest.mark.parametrize("name", ["dqn", "maskable_ppo", "sac"])
def test_one_agent_serves_several_targets(tiny: TinyTask, tmp_path: Path, name: str) -> None:
    explorer = search_with(name, seed=2, episodes=12, warm_start=("ilp",), arguments=SMALL.get(name, {}))
    env = make_env(tiny, explorer, target_ratio=(6.0, 10.0))
    log = SearchLog(nothing, RunFolder(tmp_path / "run", several=True))
    explorer.run(env, log)
    check_plans(tiny, log)
    assert [(e.source, e.target_ratio) for e in log.episodes[:2]] == [("ilp", 6.0), ("ilp", 10.0)]
    assert {e.target_ratio for e in log.episodes[2:]} == {6.0, 10.0}
    for target in (6.0, 10.0):
        asked = [e for e in log.episodes if e.target_ratio == target]
        assert log.best_score[target] == -min(e.divergence for e in asked)
        best = log.best_plans(1, target)[0]
        assert best.divergence == min(e.divergence for e in log.episodes if e.ratio >= target)
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"plan-6.json", "plan-10.json", "model-6.hsq", "model-10.hsq"}


# ---- agents of one's own


class Recurrent:
    """Chooses what its state says and notes what it is told."""

    def __init__(self, env: HSQEnv) -> None:
        self.env, self.seen = env, []  # type: tuple[HSQEnv, list[Transition]]
        self.first: list[bool] = []

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[Any, Any]:
        """See ``Policy``."""
        layer = 0 if state is None else state
        self.first.append(bool(episode_start[0]))
        return self.env.actions.encode([8, 5, 4, 6, 4, 9, 1][layer]), layer + 1

    def observe(self, transition: Transition) -> None:
        """See ``LearnsFromSteps``."""
        self.seen.append(transition)


def make_dqn(env: HSQEnv) -> BaseAlgorithm:
    return make_agent("dqn", env, seed=5)


def make_seven(env: HSQEnv) -> int:
    return 7


def test_a_policy_of_ones_own_needs_only_predict(tiny: TinyTask) -> None:
    explorer = Explorer(f"{__name__}:Recurrent", episodes=2)
    env, log = make_env(tiny, explorer, target_ratio=5.0), SearchLog(nothing)
    policy = explorer.run(env, log)
    assert isinstance(policy, Recurrent)
    check_plans(tiny, log)
    assert [episode.source for episode in log.episodes] == [explorer.algo] * 2
    assert policy.first == ([True] + [False] * 6) * 2
    plain = HSQEnv(tiny, target_ratio=5.0, step_minibatches=0, reward="divergence", beta=1.0)
    for start in (0, 7):
        observation, _ = plain.reset()
        for step, action in zip(policy.seen[start : start + 7], [8, 5, 4, 6, 4, 9, 1], strict=True):
            following, reward, done, _, info = plain.step(action)
            assert np.array_equal(step[0], observation) and np.array_equal(step[1], following)
            assert step[2:5] == (info["executed_action"], reward, done)
            observation = following
    assert [e.total_reward for e in log.episodes] == [pytest.approx(sum(s[3] for s in policy.seen[:7]))] * 2


def test_an_sb3_agent_of_ones_own_is_trained(tiny: TinyTask) -> None:
    explorer = search_with(f"{__name__}:make_dqn", episodes=2, warm_start=("ilp",))
    env, log = make_env(tiny, explorer), SearchLog(nothing)
    agent: Any = explorer.run(env, log)
    check_plans(tiny, log)
    assert isinstance(agent, BaseAlgorithm) and agent.num_timesteps == 14
    assert [episode.source for episode in log.episodes] == ["ilp", explorer.algo, explorer.algo]
    assert agent.replay_buffer.size() == 7 + 13  # SB3 stops before it stores the last step


@pytest.mark.parametrize(
    ("algo", "told"),
    [
        ("no_such_module:make", "No agent can be had from 'no_such_module:make' .*no_such_module.*module:factory"),
        (f"{__name__}:make_none", "No agent can be had from .*make_none.*module:factory"),
        (f"{__name__}:make_seven", "make_seven' makes has no predict"),
        (":make", "No agent can be had from ':make'.*module:factory"),
        ("json:", "No agent can be had from 'json:'.*module:factory"),
    ],
)
def test_a_factory_that_gives_no_agent_is_refused(tiny: TinyTask, algo: str, told: str) -> None:
    explorer = Explorer(algo)
    env = make_env(tiny, Explorer("ilp"))
    with pytest.raises(InputError, match=told):
        explorer.check()
        explorer.run(env, SearchLog(nothing))


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"algo": "rainbow"}, "Unknown agent 'rainbow': known are dqn, .*"),
        ({"warm_start": ("ilp", "cold")}, "Unknown baseline 'cold' to start from: known are uniform, random, .*"),
        ({"evaluations": 0}, "Nothing can be found in 0 evaluations: give --evaluations 1 or more."),
        ({"workers": 0}, "0 workers can do no work"),
        ({"algo": "local", "workers": 2}, "'local' acts in one environment: leave out --workers"),
        ({"algo": "os:sep", "workers": 2}, "'os:sep' acts in one environment: leave out --workers"),
        ({"algo": "local", "cluster": Cluster("local")}, "'local' acts in one environment: leave out --ray,"),
        (
            {"algo": "local", "workers": 2, "cluster": Cluster("local")},
            "'local' acts in one environment: leave out --workers and --ray, or choose an agent",
        ),
        ({"algo": "os:sep"}, "No agent can be had from 'os:sep', which cannot be called"),
        ({"algo": ".x:make"}, r"No agent can be had from '\.x:make'"),
        ({"seed": -1}, "The seed is -1: give 0 or more"),
        ({"episodes": -1}, "There are no -1 episodes: give 0 or more"),
    ],
)
def test_settings_that_no_search_can_have_are_refused(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        Explorer(**wrong).check()


# ---- alpha as part of an action


@pytest.mark.parametrize("name", ["ilp", "dqn", "sac"])
def test_plans_are_followed_with_the_environments_alpha(tiny: TinyTask, name: str) -> None:
    """What a baseline proposes and what is returned to says nothing of alpha."""
    explorer = search_with(name, episodes=3, warm_start=("ilp",))
    env = make_env(tiny, explorer, alpha_control="agent", alpha=0.6, step_minibatches=1)
    log = SearchLog(nothing)
    explorer.run(env, log)
    plain = HSQEnv(tiny, target_ratio=6.0, step_minibatches=1, alpha=0.6)
    plain.reset()
    for choice in log.episodes[0].plan.choices:
        info = plain.step(plain.choices.index(choice))[4]
    assert log.episodes[0].divergence == info["divergence"]
    assert math.isfinite(info["divergence"])


def test_a_factory_is_found_where_the_command_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A console script has its own folder on the path, not the present one."""
    (tmp_path / "agent_of_mine.py").write_text("def make(env):\n    return env\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place not in ("", str(tmp_path))])
    Explorer("agent_of_mine:make").check()
    with pytest.raises(InputError, match="No agent can be had from 'agent_of_yours:make'"):
        Explorer("agent_of_yours:make").check()
