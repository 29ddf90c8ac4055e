"""No shortcut changes a reward: whole episodes on the tiny task, against the reference path."""

import pickle
from ast import literal_eval
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from helpers import student_logits
from tiny_task import TinyBatch, TinyTask

from detectors.errors import InputError
from hsq_env.env import HSQEnv
from hsq_env.file import student_bytes
from hsq_env.prefixes import NODE_BYTES, Decision
from hsq_env.shortcuts import SWITCHES, Shortcuts

LAYERS = 7
SETTINGS: list[dict[str, Any]] = [
    {},
    {"target_ratio": 7.0},
    {"finetune_scope": "layer"},
    {"finetune_scope": "all"},
    {"step_minibatches": 0},
    {"activation_bits": None},
    {"activation_bits": "match", "reward": "size"},
    {"bfloat16": True},
    {"sparsity_pattern": "n:m", "reward": "terminal"},
    {"sparsity_pattern": "channels"},
]
Seen = list[Any]


def make(tiny: TinyTask, shortcuts: Shortcuts | None = None, **settings: Any) -> HSQEnv:
    return HSQEnv(tiny, shortcuts=shortcuts, sensitivities=np.zeros((LAYERS, 12)), **settings)


def episode(env: HSQEnv, actions: list[int]) -> Seen:
    """Everything that an agent sees, and the file that would be written."""
    observation, _ = env.reset()
    seen: Seen = [observation.tolist()]
    for action in actions:
        seen.append(look(env.step(action)))
    return [*seen, env.plan(), student_bytes(env.student) if env.index == LAYERS else None]


def look(step: tuple[Any, ...]) -> Any:
    observation, reward, terminated, _, info = step
    return observation.tolist(), reward, terminated, {**info, "action_mask": info["action_mask"].tolist()}


def random_episodes(count: int, seed: int = 0) -> list[list[int]]:
    return np.random.default_rng(seed).integers(0, 12, (count, LAYERS)).tolist()


def branching_episodes(seed: int = 0) -> list[list[int]]:
    """Episodes that leave the first one after 0 to 7 layers, that one again, and an earlier one again."""
    first, *others = random_episodes(10, seed)
    left = [first[:depth] + other[depth:] for depth, other in zip((3, 2, 1, 0, 4, 5, 6, 7, 2), others, strict=True)]
    return [first, *left, left[3], first]


@cache
def reference(tiny: TinyTask, settings: str, episodes: tuple[tuple[int, ...], ...]) -> list[Seen]:
    """What the episodes give when nothing is looked up."""
    env = make(tiny, Shortcuts(prefixes=False), **literal_eval(settings))
    return [episode(env, list(actions)) for actions in episodes]


def test_all_switches_are_on_or_all_are_off() -> None:
    assert set(SWITCHES) == set(vars(Shortcuts())) and len(SWITCHES) == 8
    assert all(switch is True for switch in vars(Shortcuts()).values())
    assert all(switch is False for switch in vars(Shortcuts.none()).values())


@cache
def usual(tiny: TinyTask) -> list[Seen]:
    """What four episodes give with all shortcuts."""
    env = make(tiny)
    return [episode(env, actions) for actions in branching_episodes(1)[:4]]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_reference_path_gives_the_same(tiny: TinyTask, settings: dict[str, Any]) -> None:
    fast, reference = make(tiny, **settings), make(tiny, Shortcuts.none(), **settings)
    for actions in random_episodes(2):
        one, other = episode(fast, actions), episode(reference, actions)
        assert one[:-1] == other[:-1]
        assert one[-1] == other[-1]


@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.parametrize("state", [True, False])
def test_every_switch_alone_gives_the_same(tiny: TinyTask, switch: str, state: bool) -> None:
    base = Shortcuts.none() if state else Shortcuts()
    one = make(tiny, Shortcuts(**{**vars(base), switch: state}))
    for actions, expected in zip(branching_episodes(1)[:4], usual(tiny), strict=True):
        assert episode(one, actions) == expected


@pytest.mark.parametrize("megabytes", [256.0, 0.02, (LAYERS + 2) * NODE_BYTES / 1e6, 0.0])
@pytest.mark.parametrize("settings", [{}, {"finetune_scope": "layer"}, {"finetune_scope": "all"}], ids=str)
def test_visited_prefixes_give_the_same(tiny: TinyTask, megabytes: float, settings: dict[str, Any]) -> None:
    """Left in the middle of a block, at its end, at the first layer; with constant eviction and with none."""
    kept = make(tiny, table_megabytes=megabytes, **settings)
    episodes = branching_episodes()
    for actions, expected in zip(episodes, reference(tiny, str(settings), tuple(map(tuple, episodes))), strict=True):
        assert episode(kept, actions) == expected
    steps, visited = kept.steps_taken
    assert steps == 12 * LAYERS
    if megabytes == 256.0:
        assert visited >= 3 + 2 + 1 + 4 + 5 + 6 + 7 + 2 + 7 + 7
    if megabytes == 0.0:
        assert visited == 0
    assert kept.compressor.table.bytes <= megabytes * 1e6


def test_an_abandoned_episode_leaves_nothing_behind(tiny: TinyTask) -> None:
    kept, fresh = make(tiny), make(tiny, Shortcuts(prefixes=False))
    for depth, actions in enumerate(random_episodes(LAYERS, 3)):
        kept.reset()
        for action in actions[:depth]:
            kept.step(action)
        assert episode(kept, branching_episodes()[depth]) == episode(fresh, branching_episodes()[depth])


def test_a_known_episode_computes_nothing_until_the_student_is_wanted(
    tiny: TinyTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = make(tiny)
    first, other = random_episodes(2, 5)
    expected = episode(env, first)
    episode(env, other)
    env.reset()
    with monkeypatch.context() as patch:
        patch.setattr(type(env.compressor), "_compress", None)
        patch.setattr(type(env.compressor.judge), "measure", None)
        steps = [look(env.step(action)) for action in first]
    assert steps == expected[1:-2]
    wanted = make(tiny, Shortcuts(prefixes=False))
    episode(wanted, first)
    assert torch.equal(student_logits(env.student), student_logits(wanted.student))
    assert student_bytes(env.student) == expected[-1]


def test_finished_blocks_come_from_the_table(tiny: TinyTask, monkeypatch: pytest.MonkeyPatch) -> None:
    env, fresh = make(tiny), make(tiny, Shortcuts(prefixes=False))
    first, other = random_episodes(2, 6)
    episode(env, first)
    episode(env, other)
    computed: list[int] = []
    compress = type(env.compressor)._compress

    def note(self: Any, index: int, choice: Any) -> None:
        computed.append(index)
        compress(self, index, choice)

    env.reset()
    fresh.reset()
    for action in first[:4]:
        env.step(action)
        fresh.step(action)
    monkeypatch.setattr(type(env.compressor), "_compress", note)
    step = look(env.step(other[4]))
    assert computed == [3, 4]  # stem and first block from the table, the second block's first layer anew
    monkeypatch.undo()
    assert step == look(fresh.step(other[4]))


def test_alpha_is_part_of_a_prefix(tiny: TinyTask) -> None:
    env = make(tiny)
    actions = [5] * LAYERS
    expected = {}
    for alpha in (0.3, 0.9):
        fresh = make(tiny, Shortcuts.none(), alpha=alpha)
        expected[alpha] = episode(fresh, actions)
    for alpha in (0.3, 0.9, 0.3):
        env.reset(options={"alpha": alpha})
        assert episode(env, actions) == expected[alpha]
    assert expected[0.3] != expected[0.9]
    assert env.steps_taken == (3 * LAYERS, LAYERS)


# ---- forks and states


@pytest.mark.parametrize("shortcuts", [None, Shortcuts.none()], ids=["all", "none"])
@pytest.mark.parametrize("depth", [0, 2, 4, 7])
def test_a_fork_goes_its_own_way(tiny: TinyTask, shortcuts: Shortcuts | None, depth: int) -> None:
    env = make(tiny, shortcuts)
    first, other = random_episodes(2, depth)
    env.reset()
    steps = [look(env.step(action)) for action in first[:depth]]
    fork = env.fork()
    assert fork.index == depth and fork.steps_taken == (0, 0)
    ends = []
    for place in range(depth, LAYERS):  # in turn, so that each could spoil the other
        ends.append((look(fork.step(other[place])), look(env.step(first[place]))))
    fresh = make(tiny, Shortcuts(prefixes=False))
    assert [fresh.reset()[0].tolist(), *steps, *(own for _, own in ends)] == episode(fresh, first)[:-2]
    assert [*steps, *(theirs for theirs, _ in ends)] == episode(fresh, first[:depth] + other[depth:])[1:-2]
    assert student_bytes(fork.student) == student_bytes(fresh.student)
    assert episode(fork, first) == episode(env, first)


def test_forks_share_what_they_find(tiny: TinyTask) -> None:
    env = make(tiny)
    env.reset()
    fork = env.fork()
    actions = random_episodes(1, 8)[0]
    found = episode(fork, actions)
    assert episode(env, actions) == found
    assert env.steps_taken == (LAYERS, LAYERS)
    assert fork.task is env.task and fork.sensitivities is env.sensitivities


@pytest.mark.parametrize("other", ["itself", "another", "pickled"])
@pytest.mark.parametrize("shortcuts", [None, Shortcuts.none()], ids=["all", "none"])
def test_a_state_is_a_place_to_come_back_to(tiny: TinyTask, shortcuts: Shortcuts | None, other: str) -> None:
    env = make(tiny, shortcuts, target_ratio=6.0)
    actions = random_episodes(1, 9)[0]
    env.reset(options={"alpha": 0.6})
    states, steps = [env.get_state()], []
    for action in actions:
        steps.append(look(env.step(action)))
        states.append(env.get_state())
    content = student_bytes(env.student)
    assert len(pickle.dumps(states[-1])) < 2000
    states = pickle.loads(pickle.dumps(states))
    then = {"itself": env, "another": make(tiny, target_ratio=6.0), "pickled": pickle.loads(pickle.dumps(env))}[other]
    for depth in (3, 5, 0, 7, 1):
        observation, info = then.set_state(states[depth])
        assert then.get_state() == states[depth]
        if depth:
            assert observation.tolist() == steps[depth - 1][0]
            assert info["action_mask"].tolist() == steps[depth - 1][3]["action_mask"]
        assert [look(then.step(action)) for action in actions[depth:]] == steps[depth:]
        assert student_bytes(then.student) == content


def test_a_state_of_another_problem_is_refused(tiny: TinyTask) -> None:
    env, other = make(tiny), make(tiny, bits=(8,))
    env.reset()
    env.step(11)
    before = other.get_state()
    with pytest.raises(InputError, match="1 decisions that do not fit 7 layers with 4 choices"):
        other.set_state(env.get_state())
    assert other.get_state() == before


@pytest.mark.parametrize("depth", [0, 3, 6])
def test_a_pickled_environment_whose_student_lags_behind_goes_on_alike(tiny: TinyTask, depth: int) -> None:
    env = make(tiny)
    first, other = random_episodes(2, 10)
    expected = episode(env, first)
    episode(env, other)
    env.reset()
    for action in first[:depth]:
        env.step(action)
    copy = pickle.loads(pickle.dumps(env))
    assert [look(copy.step(action)) for action in first[depth:]] == expected[depth + 1 : -2]
    assert student_bytes(copy.student) == expected[-1]
    assert len(copy.compressor.table) == 2 * LAYERS  # what was played last, and this


def test_switches_off_are_off(tiny: TinyTask, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference path runs student and teacher from the images on for every loss and every accuracy."""
    counts: dict[str, int] = {}

    class Counting(TinyTask):
        def __init__(self) -> None:
            self.__dict__.update(tiny.__dict__)

        def stages(self, model: Any) -> Any:
            stages = super().stages(model)
            name = "teacher" if model is self.teacher else "student"

            def run(state: Any, first: Any = stages[0].run) -> Any:
                counts[name] = counts.get(name, 0) + 1
                return first(state)

            return [type(stages[0])("stem", "stem", stages[0].reads, run), *stages[1:]]

    for shortcuts, expected in (
        (Shortcuts(), {"student": 2 + 4}),  # two search batches and the pool of four, once
        (
            Shortcuts.none(),
            {"student": 3 * (2 + 2), "teacher": 3 * (2 + 2 + 2)},
        ),  # two batches, for mAP and divergence, and two losses
    ):
        env = make(Counting(), shortcuts)
        env.reset()
        env.step(5)  # the stem itself is what changes
        counts.clear()
        for _ in range(3):
            env.step(5)
        assert counts == expected


# ---- accelerators


def test_no_step_waits_for_a_device(tiny: TinyTask, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device, where nothing has a value, whoever asks for one gets an error.

    All but the metric runs: choices of every kind, fine-tuning, the forward pass, packing of blocks. torch's fake
    quantization, which is elementwise, does not exist there.
    """
    monkeypatch.setattr(torch, "_fake_quantize_learnable_per_channel_affine", lambda x, scale, *_: x * scale.mean())
    env = make(tiny, activation_bits=None)
    compressor = env.compressor
    student = compressor._student
    student.model.to("meta")
    student._bind()
    for kept in (compressor.judge.kept, compressor.repair.kept):
        kept.batches = [TinyBatch(b.images.to("meta"), b.labels.to("meta")) for b in kept.batches]  # type: ignore[attr-defined]
        kept.reset()
    compressor.repair.expected = [
        [type(item)(item.name, item.kind, item.tensor.to("meta")) for item in outputs]  # type: ignore[call-arg]
        for outputs in compressor.repair.expected
    ]
    with pytest.raises(RuntimeError, match="meta"):
        torch.ones((), device="meta").item()
    for index, action in enumerate([0, 3, 1, 5, 7, 8, 11]):
        decision = Decision(env.choices[action], 0.3)
        compressor.node = compressor._built = compressor.table.add(compressor.node, decision, None)
        compressor._compress(index, env.choices[action])
        finite = compressor.repair.run(student, index, 0.3)
        assert finite.device.type == "meta"
        state = compressor.judge.kept.state(student.stages, 0)
        assert compressor.judge.kept.route.finish(student.stages, state)["logits"].device.type == "meta"
        compressor._finish(compressor.node)
    assert sum(node.weights is not None for node in compressor.table) == 4
