"""The environment on the tiny task: real episodes."""

import json
import math
import pickle
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from helpers import play, python, rewards_of
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from tiny_task import TinyNet, TinyStage, TinyTask
from torch import nn

from detectors.errors import InputError
from hsq_env.choices import Choice, Plan
from hsq_env.env import HSQEnv
from hsq_env.file import load_hsq, save_hsq, student_bytes
from hsq_env.latency_table import LatencyTable
from hsq_env.rewards import REWARDS, StepOutcome, reward_terms
from hsq_env.shortcuts import Shortcuts
from hsq_env.size import layer_bytes
from hsq_env.student import evaluate

SPACES = ("discrete", "multi_discrete", "continuous")
ACTIONS = [8, 3, 6, 1, 10, 5, 0]  # of the default grid; one per layer
NO_SENSITIVITIES = np.zeros((7, 12))
NAMES = ("stem", "block1.conv1", "block1.conv2", "block2.conv1", "block2.conv2", "head.0", "logits")
TIMES = LatencyTable("by hand", {n: {str(b): 1e-6 * b * (i + 1) for b in (2, 4, 8, 32)} for i, n in enumerate(NAMES)})


class NotANumber(TinyTask):
    """The tiny task, whose student puts out NaN as soon as a layer carries a choice."""

    def __init__(self, tiny: TinyTask, layer: str) -> None:
        self.__dict__.update(tiny.__dict__)
        self.layer = layer

    def stages(self, model: nn.Module) -> list[TinyStage]:
        *first, head = super().stages(model)

        def run(state: dict[str, Any]) -> dict[str, Any]:
            poisoned = getattr(model.get_submodule(self.layer), "choice", None) is not None
            return {name: x * math.nan if poisoned else x for name, x in head.run(state).items()}

        return [*first, TinyStage(head.name, head.block, head.reads, run)]


@pytest.fixture
def env(tiny: TinyTask) -> HSQEnv:
    made = HSQEnv(tiny)
    made.reset()
    return made


def episode(env: HSQEnv, actions: list[Any]) -> tuple[list[np.ndarray], list[float]]:
    """Observations, the first included, and rewards."""
    first, _ = env.reset(seed=0)
    steps = [env.step(action) for action in actions]
    return [first, *(step[0] for step in steps)], [step[1] for step in steps]


def same(one: tuple[list[np.ndarray], list[float]], other: tuple[list[np.ndarray], list[float]]) -> bool:
    return one[1] == other[1] and all(np.array_equal(a, b) for a, b in zip(one[0], other[0], strict=True))


# ---- the interface


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("target_ratio", [None, 7.0])
def test_checkers_have_nothing_to_say(tiny: TinyTask, space: str, target_ratio: float | None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = gym.make("hsq_env:HSQ-ResNet50-v0", task=tiny, action_space=space, target_ratio=target_ratio)
        check_env(made.unwrapped)
        sb3_check_env(made.unwrapped)


def test_an_episode_takes_the_layers_in_order(env: HSQEnv) -> None:
    _, info = env.reset()
    names = [info["layer"]]
    for layer, action in enumerate(ACTIONS):
        assert env.index == layer
        _, _, terminated, truncated, info = env.step(action)
        names.append(info["layer"])
        assert terminated is (layer == 6) and truncated is False
        assert ("plan" in info) is (layer == 6)
    assert names == [*(layer.name for layer in env.layers), None]
    assert info["plan"] == env.plan() == Plan(tuple(names[:-1]), tuple(env.choices[a] for a in ACTIONS))
    assert env.student.plan() == info["plan"]


def test_a_step_after_the_end_asks_for_a_reset(env: HSQEnv) -> None:
    play(env, ACTIONS)
    with pytest.raises(gym.error.ResetNeeded, match=r"call reset\(\)"):
        env.step(0)


def test_an_unfinished_episode_has_no_plan(env: HSQEnv) -> None:
    env.step(0)
    with pytest.raises(InputError, match="decided 1 of 7 layers"):
        env.plan()


@pytest.mark.parametrize("space", SPACES)
def test_all_spaces_mean_the_same_choices(tiny: TinyTask, space: str) -> None:
    env, plain = HSQEnv(tiny, action_space=space), HSQEnv(tiny)
    encoded = [env.actions.encode(action) for action in ACTIONS]
    assert same(episode(env, encoded), episode(plain, ACTIONS))
    assert env.plan() == plain.plan()


# ---- determinism


def test_the_same_actions_give_the_same_episode(tiny: TinyTask, env: HSQEnv) -> None:
    first = episode(env, ACTIONS)
    assert same(episode(env, ACTIONS), first)
    play(env, [2, 2, 2])  # an episode that is given up
    assert same(episode(env, ACTIONS), first)
    assert same(episode(HSQEnv(tiny), ACTIONS), first)


@pytest.mark.slow
def test_a_subprocess_gives_the_same_episode(env: HSQEnv) -> None:
    observations, rewards = episode(env, ACTIONS)
    done = python(
        "import json\nimport hsq_env\nfrom hsq_env.env import HSQEnv\nfrom tiny_task import TinyTask\n"
        "env = HSQEnv(TinyTask())\nseen = [env.reset(seed=0)[0]]\nrewards = []\n"
        f"for action in {ACTIONS}:\n"
        "    observation, reward, *_ = env.step(action)\n    seen.append(observation)\n    rewards.append(reward)\n"
        "print(json.dumps([[o.tolist() for o in seen], rewards]))\n"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[o.tolist() for o in observations], rewards]


@pytest.mark.parametrize("scope", ["layer", "block", "all"])
def test_resuming_changes_nothing(tiny: TinyTask, scope: str) -> None:
    kept, recomputed = (HSQEnv(tiny, finetune_scope=scope, shortcuts=Shortcuts(resume=r)) for r in (True, False))
    assert same(episode(kept, ACTIONS), episode(recomputed, ACTIONS))


def test_bfloat16_repeats_itself_too(tiny: TinyTask, env: HSQEnv) -> None:
    half = HSQEnv(tiny, bfloat16=True)
    first = episode(half, ACTIONS)
    assert same(episode(half, ACTIONS), first)
    half.reset()
    half.step(3)
    env.step(3)
    assert not torch.equal(half.student.layers[0].weight, env.student.layers[0].weight)


@pytest.mark.parametrize("steps", [0, 1, 4, 7])
def test_a_pickled_environment_goes_on_alike(env: HSQEnv, steps: int) -> None:
    play(env, ACTIONS[:steps])
    copy = pickle.loads(pickle.dumps(env))
    for action in ACTIONS[steps:]:
        (one, reward, *_), (other, same_reward, *_) = env.step(action), copy.step(action)
        assert np.array_equal(one, other) and reward == same_reward
    assert copy.plan() == env.plan()
    assert same(episode(copy, ACTIONS), episode(env, ACTIONS))


def test_copies_do_not_disturb_each_other(env: HSQEnv) -> None:
    expected = rewards_of(env, ACTIONS)
    play(env, ACTIONS[:3])
    copy = pickle.loads(pickle.dumps(env))
    copy.step(11)
    copy.reset()
    assert [env.step(action)[1] for action in ACTIONS[3:]] == expected[3:]


# ---- rewards


@pytest.mark.parametrize("name", sorted(REWARDS))
def test_the_reward_is_the_sum_of_its_terms(tiny: TinyTask, name: str) -> None:
    env = HSQEnv(tiny, reward=name, beta=0.6, step_minibatches=0, latency_table=TIMES)
    floats = [layer_bytes(info, None) for info in env.layers]
    before = 0.0
    for layer, (_, reward, _, _, info) in enumerate(play(env, ACTIONS)):
        harm, before = np.log1p(info["divergence"]) - np.log1p(before), info["divergence"]
        choice, macs = env.choices[ACTIONS[layer]], [each.macs for each in env.layers]
        outcome = StepOutcome(
            accuracy=info["accuracy"],
            choice=choice,
            layer_share=env.sizes[layer, ACTIONS[layer]] / floats[layer],
            model_share=floats[layer] / sum(floats) * 7,
            last=layer == 6,
            student_share=1 / info["ratio"],
            harm=float(harm),
            latency_share=choice.bits * (layer + 1) / (32 * 28) * 7,
            operations_share=macs[layer] * (1 - choice.sparsity) * choice.bits * 8 / (32**2 * sum(macs)) * 7,
        )
        assert info["reward_terms"] == pytest.approx(reward_terms(name, outcome, 0.6))
        assert reward == sum(info["reward_terms"].values())


def test_the_papers_reward_by_hand(env: HSQEnv) -> None:
    _, reward, _, _, info = env.step(5)  # 4 bits, 25 % sparse
    assert reward == pytest.approx(0.8 * info["accuracy"] - 0.2 * (4 / 8 + 0.75) / 2)


def test_accuracy_is_measured_on_the_search_split(tiny: TinyTask, env: HSQEnv) -> None:
    *_, (_, _, _, _, info) = play(env, ACTIONS)
    teacher, student = (evaluate(tiny, stages, "search") for stages in (tiny.stages(tiny.teacher), env.student.stages))
    assert info["accuracy"] == student / teacher


def test_alpha_and_beta_may_change_at_reset(tiny: TinyTask, env: HSQEnv) -> None:
    env.reset(options={"alpha": 0.9, "beta": 0.1})
    found = [env.step(action)[:2] for action in ACTIONS]
    other = HSQEnv(tiny, alpha=0.9, beta=0.1)
    assert [reward for _, reward in found] == rewards_of(other, ACTIONS)
    observation, _ = env.reset()  # kept for the following episodes
    assert observation[38:40].tolist() == [np.float32(0.9), np.float32(0.1)]
    assert found[0][0][38:40].tolist() == observation[38:40].tolist()


def test_alpha_is_the_share_of_the_task_loss(tiny: TinyTask) -> None:
    low, high = (HSQEnv(tiny, alpha=alpha) for alpha in (0.0, 1.0))
    for env in (low, high):
        play(env, [3])
    assert not torch.equal(low.student.layers[0].weight, high.student.layers[0].weight)


# ---- students that are no numbers


@pytest.mark.parametrize("step_minibatches", [0, 2])
@pytest.mark.parametrize("name", sorted(REWARDS))
def test_a_diverged_student_is_a_bad_reward_and_a_flag(tiny: TinyTask, name: str, step_minibatches: int) -> None:
    task = NotANumber(tiny, "block1.conv2")
    settings: Any = {"step_minibatches": step_minibatches, "sensitivities": NO_SENSITIVITIES, "latency_table": TIMES}
    env = HSQEnv(task, reward=name, **settings)
    steps = play(env, ACTIONS)
    assert [info["diverged"] for *_, info in steps] == [False, False] + [True] * 5
    assert [info["accuracy"] for *_, info in steps[2:]] == [0.0] * 5
    for observation, reward, _, _, info in steps[2:]:
        assert info["reward_terms"]["diverged"] == -1.0 and info["reward_terms"].get("accuracy", 0.0) == 0.0
        assert reward == sum(info["reward_terms"].values()) <= -1.0
        assert env.observation_space.contains(observation)
    assert "diverged" not in steps[0][4]["reward_terms"]
    env.reset()
    assert env.step(0)[4]["diverged"] is False


# ---- size and budget


@pytest.mark.parametrize("activation_bits", [8, None, "match"])
@pytest.mark.parametrize("seed", range(3))
def test_the_reported_ratio_is_that_of_the_files(
    tiny: TinyTask, tmp_path: Path, seed: int, activation_bits: int | str | None
) -> None:
    env = HSQEnv(tiny, activation_bits=activation_bits, step_minibatches=0)
    actions = np.random.default_rng(seed).integers(12, size=7).tolist()
    *_, (_, _, _, _, info) = play(env, actions)
    teacher = tmp_path / "teacher.safetensors"
    teacher.write_bytes(tiny.teacher_file())
    packed = teacher.stat().st_size / len(student_bytes(env.student, coded=False))
    assert (
        0.99 * packed
        <= info["ratio"]
        <= packed
        < teacher.stat().st_size / save_hsq(env.student, tmp_path / "model.hsq")
    )
    model = TinyNet().requires_grad_(False)
    load_hsq(tmp_path / "model.hsq", model)
    assert evaluate(tiny, tiny.stages(model), "search") / env.compressor.judge.scale.teacher == info["accuracy"]


def test_undecided_layers_count_in_float32(env: HSQEnv) -> None:
    floats = [layer_bytes(info, None) for info in env.layers]
    assert env.ratio == env.teacher_bytes / (sum(floats) + env.fixed_bytes)
    info = env.step(4)[4]
    assert info["ratio"] == env.teacher_bytes / (env.sizes[0, 4] + sum(floats[1:]) + env.fixed_bytes)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("target", [4.0, 9.0, 12.0])
def test_a_budget_is_always_met(tiny: TinyTask, tmp_path: Path, space: str, target: float) -> None:
    env = HSQEnv(tiny, action_space=space, target_ratio=target, step_minibatches=0)
    greedy = [env.actions.encode(8)] * 7  # 8 bits everywhere would be 3.6x
    _, told = env.reset()
    differed = 0
    for action in greedy:
        allowed = told["action_mask"]
        _, _, _, _, told = env.step(action)
        executed = env.actions.decode(told["executed_action"])
        assert allowed[executed]
        assert (executed == 8) is bool(allowed[8])
        assert env.choices_so_far()[-1] == env.choices[executed]
        differed += executed != 8
    assert differed > 0
    assert told["ratio"] >= target
    assert env.teacher_bytes / save_hsq(env.student, tmp_path / "model.hsq") >= target


def test_the_largest_ratio_can_be_asked_for(tiny: TinyTask) -> None:
    largest = HSQEnv(tiny).budget.largest_ratio
    env = HSQEnv(tiny, target_ratio=largest, step_minibatches=0)
    *_, (_, _, _, _, info) = play(env, [8] * 7)
    assert info["ratio"] == largest


def test_more_than_the_largest_ratio_is_refused(tiny: TinyTask) -> None:
    with pytest.raises(InputError, match=r"target ratio of 13 cannot be reached.*up to 12\.\d\d"):
        HSQEnv(tiny, target_ratio=13.0)


def test_masks_have_the_form_of_the_space(tiny: TinyTask) -> None:
    for space, length in zip(SPACES, (12, 7, 7), strict=True):
        env = HSQEnv(tiny, action_space=space, target_ratio=12.0)
        env.reset()
        for _ in range(2):  # the second layer is large: little is left to choose
            info = env.step(env.actions.encode(0))[4]
        assert info["action_mask"].shape == (12,) and not info["action_mask"].all()
        assert np.array_equal(env.action_masks(), env.actions.mask(info["action_mask"]))
        assert env.action_masks().shape == (length,)


def test_without_a_budget_everything_is_allowed(env: HSQEnv) -> None:
    steps = play(env, ACTIONS)
    assert all(info["action_mask"].all() for *_, info in steps)
    assert [info["executed_action"] for *_, info in steps] == ACTIONS


def test_a_smaller_grid(tiny: TinyTask) -> None:
    env = HSQEnv(tiny, bits=(4, 8), sparsities=(0.0, 0.5))
    assert env.action_space == gym.spaces.Discrete(4)
    assert env.choices == (Choice(4), Choice(4, 0.5), Choice(8), Choice(8, 0.5))
    assert env.observation_space.shape == (18 + 4 + 10 + 4,)
    play(env, [1, 0, 3, 2, 1, 0, 3])
    assert env.plan().choices[:3] == (Choice(4, 0.5), Choice(4), Choice(8, 0.5))


# ---- evaluations


def test_would_measure_tells_what_a_step_costs(tiny: TinyTask) -> None:
    env = HSQEnv(tiny, target_ratio=8.0, step_minibatches=0, sensitivities=NO_SENSITIVITIES)
    rng = np.random.default_rng(0)
    told: list[bool] = []
    for _ in range(30):
        env.reset()
        for _ in range(7):
            action, before, state = int(rng.integers(3)), env.evaluations, env.get_state()
            told.append(env.would_measure(action))
            assert (env.get_state(), env.evaluations) == (state, before)
            env.step(action)
            assert env.evaluations == before + told[-1]
    assert set(told) == {True, False} and env.evaluations == sum(told)


# ---- sensitivities after a repair


def test_repaired_sensitivities_are_shown_behind_the_others(tiny: TinyTask) -> None:
    env, plain = HSQEnv(tiny, observe_repaired=True), HSQEnv(tiny)
    assert env.observation_space.shape == (64,)
    assert env.observation_names[30:42] == tuple(
        name.replace("sensitivity", "repaired") for name in plain.observation_names[18:30]
    )
    assert env.observation_names[:30] + env.observation_names[42:] == plain.observation_names
    shown = (np.log10(np.maximum(env.repaired_sensitivities, 1e-6) / 1e-6) / 8).clip(0, 1).astype(np.float32)
    (seen, _), (expected, _) = env.reset(), plain.reset()
    for layer, action in enumerate(ACTIONS):
        assert np.array_equal(seen[30:42], shown[layer])
        assert np.array_equal(np.r_[seen[:30], seen[42:]], expected)
        (seen, reward, *_), (expected, same_reward, *_) = env.step(action), plain.step(action)
        assert reward == same_reward


def test_repaired_sensitivities_cost_no_evaluations(tiny: TinyTask) -> None:
    env = HSQEnv(tiny, observe_repaired=True)
    assert env.repaired_sensitivities.shape == (7, 12) and env.repaired_sensitivities is env.repaired_sensitivities
    assert env.evaluations == 0 and env.index == 0
