"""The observation: what stands where, in [0, 1]."""

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import play
from tiny_task import TinyTask

from hsq_env.choices import Choice, choice_grid
from hsq_env.env import HSQEnv
from hsq_env.layer_info import LayerInfo
from hsq_env.observation import Progress, observation, observation_names, static_features, teacher_weights

NAMES = observation_names(choice_grid())
PROGRESS = Progress(
    accuracy=0.9,
    divergence=1.5,
    size_so_far=0.2,
    weights_left=0.7,
    budget_slack=0.4,
    target=0.1,
    last=Choice(4, 0.25),
    alpha=0.3,
    beta=0.8,
)


@pytest.fixture(scope="module")
def env(tiny: TinyTask) -> HSQEnv:
    return HSQEnv(tiny, target_ratio=6.0)


def static(tiny: TinyTask, infos: tuple[LayerInfo, ...], sensitivity: float = 1e-3) -> np.ndarray:
    weights = teacher_weights(tiny.teacher, infos)
    return static_features(infos, weights, np.full((len(infos), 12), sensitivity))


def test_names_stand_where_the_docstring_says() -> None:
    assert len(NAMES) == len(set(NAMES)) == 52
    assert NAMES[:4] == ("index", "weights", "weights_share", "macs_share")
    assert NAMES[4:11] == ("out_channels", "in_channels", "kernel", "stride", "depthwise", "calls", "linear")
    assert NAMES[11:15] == ("weight_std", "weight_peak", "weight_small", "weight_channel_spread")
    assert NAMES[15:18] == ("input_std", "input_peak", "input_zeros")
    assert (NAMES[18], NAMES[29]) == ("sensitivity_2bit_0", "sensitivity_8bit_0.75")
    assert NAMES[30:36] == ("accuracy", "divergence", "size_so_far", "weights_left", "budget_slack", "target")
    assert NAMES[36:40] == ("last_bits", "last_sparsity", "alpha", "beta")
    assert (NAMES[40], NAMES[51]) == ("allowed_2bit_0", "allowed_8bit_0.75")


def test_the_docstrings_table_covers_every_index() -> None:
    rows = re.findall(r"^    \| (\d+)(?:-(\d+))? \|", HSQEnv.__doc__ or "", re.MULTILINE)
    covered = [i for first, last in rows for i in range(int(first), int(last or first) + 1)]
    assert covered == list(range(len(NAMES)))


def test_static_features_by_hand(tiny: TinyTask, infos: tuple[LayerInfo, ...]) -> None:
    row = dict(zip(NAMES[:30], static(tiny, infos)[1].tolist(), strict=True))  # block1.conv1, 16 x 16 x 3 x 3
    weight = tiny.teacher.block1.conv1.weight.double().numpy().reshape(16, -1)
    info = infos[1]
    total = sum(np.prod(i.shape) for i in infos)
    peaks = np.abs(weight).max(axis=1)
    expected = {
        "index": 1 / 6,
        "weights": np.log10(2304) / 8,
        "weights_share": (2304 / total) ** 0.5,
        "macs_share": (info.macs / sum(i.macs for i in infos)) ** 0.5,
        "out_channels": np.log(16) / 12,
        "in_channels": np.log(16) / 12,
        "kernel": 3 / 7,
        "stride": 1 / 4,
        "depthwise": 0.0,
        "calls": 1 / 8,
        "linear": 0.0,
        "weight_std": (np.log10(weight.std()) + 4) / 8,
        "weight_peak": 3 / max(3, peaks.max() / weight.std()),
        "weight_small": (np.abs(weight) < 0.5 * weight.std()).mean(),
        "weight_channel_spread": peaks.min() / peaks.max(),
        "input_std": (np.log10(info.input_std) + 4) / 8,
        "input_peak": 3 / max(3, (info.input_ranges[0][1] - info.input_mean) / info.input_std),
        "input_zeros": info.input_zeros,
        **{name: np.log10(1e3) / 8 for name in NAMES[18:30]},
    }
    assert row == pytest.approx(expected, rel=1e-5)


def test_names_with_repaired_sensitivities_and_with_alphas() -> None:
    choices = choice_grid((2, 8), (0.0, 0.5))
    label = ("2bit_0", "2bit_0.5", "8bit_0", "8bit_0.5")
    plain = observation_names(choices)
    assert plain == (*NAMES[:18], *(f"sensitivity_{x}" for x in label), *NAMES[30:40], *(f"allowed_{x}" for x in label))
    assert observation_names(choices, actions=4) == plain
    repaired = observation_names(choices, True, 12)
    assert repaired[18:26] == tuple(f"{kind}_{x}" for kind in ("sensitivity", "repaired") for x in label)
    assert repaired[26:36] == NAMES[30:40]
    assert repaired[36:] == tuple(f"allowed_{x}_{i}" for x in label for i in range(3))


def made(infos: tuple[LayerInfo, ...], shape: tuple[int, ...], **settings: Any) -> tuple[LayerInfo, torch.Tensor]:
    """A layer whose weights are 1 and -1 in turn."""
    weight = (torch.arange(int(np.prod(shape))) % 2 * 2.0 - 1).reshape(shape)
    return replace(infos[1], shape=shape, **settings), weight


def test_features_of_layers_of_any_shape(infos: tuple[LayerInfo, ...]) -> None:
    flat = {"input_ranges": ((-9.0, -1.0), (0.0, 3.0)), "input_mean": 1.0, "input_std": 1.0}
    layers = [
        made(infos, (8, 3, 5, 7), groups=2, **flat),
        made(infos, (4, 1, 3, 3), groups=1, input_ranges=((0.0, 7.0),), input_mean=1.0, input_std=0.5),
        made(infos, (6, 1, 1, 3), groups=2, calls=4, stride=2, **flat),
        made(infos, (5, 12), groups=1, **flat),
    ]
    rows = static_features([info for info, _ in layers], [w for _, w in layers], np.ones((4, 12)), np.ones((4, 12)))
    assert rows.shape == (4, 18 + 24) and rows.dtype == np.float32
    found = {name: rows[:, i].tolist() for i, name in enumerate(NAMES[:18])}
    assert found["index"] == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert found["out_channels"] == pytest.approx([np.log(n) / 12 for n in (8, 4, 6, 5)])
    assert found["in_channels"] == pytest.approx([np.log(n) / 12 for n in (6, 1, 2, 12)])
    assert found["kernel"] == pytest.approx([5 / 7, 3 / 7, 1 / 7, 1 / 7])
    assert found["stride"] == [0.25, 0.25, 0.5, 0.25] and found["calls"] == [0.125, 0.125, 0.5, 0.125]
    assert found["depthwise"] == [0.0, 0.0, 1.0, 0.0] and found["linear"] == [0.0, 0.0, 0.0, 1.0]
    assert found["weight_peak"] == [1.0] * 4 and found["weight_small"] == [0.0] * 4
    assert found["input_peak"] == pytest.approx([1.0, 3 / 12, 1.0, 1.0])
    pair = static_features([info for info, _ in layers[:2]], [w for _, w in layers[:2]], np.ones((2, 12)))
    assert pair[:, 0].tolist() == [0.0, 1.0]
    alone = static_features([layers[0][0]], [layers[0][1]], np.ones((1, 12)))
    assert alone[0, 0] == 0.0 and alone[0, 2] == alone[0, 3] == 1.0  # all weights and products are its own


def test_layers_without_products_have_no_share(infos: tuple[LayerInfo, ...]) -> None:
    info, weight = made(infos, (5, 12), macs=0)
    assert static_features([info], [weight], np.ones((1, 12)))[0, 3] == 0.0


def test_weights_and_inputs_that_are_zero_have_finite_features(infos: tuple[LayerInfo, ...]) -> None:
    info, weight = made(infos, (4, 3, 3, 3), input_ranges=((0.0, 0.0),), input_mean=0.0, input_std=0.0)
    row = dict(zip(NAMES[:18], static_features([info], [0 * weight], np.ones((1, 12)))[0].tolist(), strict=False))
    assert [row[n] for n in ("weight_std", "weight_peak", "weight_small", "weight_channel_spread")] == [0, 1, 0, 0]
    assert [row[n] for n in ("input_std", "input_peak")] == [0, 1]


def test_kinds_of_layers(tiny: TinyTask, infos: tuple[LayerInfo, ...]) -> None:
    rows = static(tiny, infos)
    linear, stride = NAMES.index("linear"), NAMES.index("stride")
    assert rows[:, linear].tolist() == [0.0] * 6 + [1.0]
    assert rows[:, stride].tolist() == [0.5] + [0.25] * 6
    depthwise = [replace(infos[1], shape=(16, 1, 3, 3), groups=16)]
    row = static_features(depthwise, [torch.randn(16, 1, 3, 3)], np.ones((1, 12)))[0]
    assert row[NAMES.index("depthwise")] == 1.0
    assert row[NAMES.index("in_channels")] == np.float32(np.log(16) / 12)


@pytest.mark.parametrize(("loss", "expected"), [(0.0, 0.0), (1e-6, 0.0), (1e-2, 0.5), (1e2, 1.0), (1e9, 1.0)])
def test_sensitivities_are_logarithmic(
    tiny: TinyTask, infos: tuple[LayerInfo, ...], loss: float, expected: float
) -> None:
    np.testing.assert_allclose(static(tiny, infos, loss)[:, 18:], expected, atol=1e-6)


def test_moving_part_by_hand(tiny: TinyTask, infos: tuple[LayerInfo, ...]) -> None:
    rows = static(tiny, infos)
    allowed = np.arange(12) % 3 == 0
    found = observation(rows, 4, PROGRESS, allowed)
    assert found.dtype == np.float32
    assert np.array_equal(found[:30], rows[4])
    np.testing.assert_allclose(
        found[30:40], [0.45, np.log(2.5) / 5, 0.2, 0.7, 0.4, 0.1, 0.5, 0.25, 0.3, 0.8], rtol=1e-6
    )
    assert np.array_equal(found[40:], allowed.astype(np.float32))


def test_before_the_first_choice(tiny: TinyTask, infos: tuple[LayerInfo, ...]) -> None:
    found = observation(static(tiny, infos), 0, replace(PROGRESS, last=None), np.ones(12, dtype=bool))
    assert found[36:38].tolist() == [1.0, 0.0]


def test_progress_below_nothing_is_cut_off(tiny: TinyTask, infos: tuple[LayerInfo, ...]) -> None:
    found = observation(static(tiny, infos), 0, replace(PROGRESS, budget_slack=-0.1), np.ones(12, dtype=bool))
    assert found[34] == 0.0


def test_an_accuracy_above_two_is_cut_off(tiny: TinyTask, infos: tuple[LayerInfo, ...]) -> None:
    found = observation(static(tiny, infos), 0, replace(PROGRESS, accuracy=2.5), np.ones(12, dtype=bool))
    assert found[30] == 1.0


@pytest.mark.parametrize("seed", range(3))
def test_the_environments_observations(env: HSQEnv, seed: int) -> None:
    actions = np.random.default_rng(seed).integers(12, size=7)
    first, info = env.reset()
    seen = [(first, info), *((step[0], step[4]) for step in play(env, actions.tolist()))]
    assert len(env.observation_names) == len(first)
    for layer, (found, told) in enumerate(seen):
        assert env.observation_space.contains(found)
        assert np.array_equal(found[40:], told["action_mask"].astype(np.float32))
        assert np.array_equal(found[:30], env._static[min(layer, 6)])


def test_progress_in_the_environment(env: HSQEnv) -> None:
    env.reset(options={"alpha": 0.25, "beta": 0.5})
    found, _, _, _, info = env.step(11)  # 8 bits, 75 % sparse
    seen = dict(zip(env.observation_names, found.tolist(), strict=True))
    weights = [np.prod(i.shape) * 4 + i.shape[0] * 4 * i.has_bias for i in env.layers]
    assert seen["accuracy"] == np.float32(info["accuracy"] / 2)
    assert seen["divergence"] == pytest.approx(np.log1p(info["divergence"]) / 5)
    assert seen["target"] == pytest.approx(1 / 6)
    assert seen["size_so_far"] == pytest.approx(env.sizes[0, 11] / weights[0])
    assert seen["weights_left"] == pytest.approx(1 - weights[0] / sum(weights))
    assert seen["budget_slack"] == pytest.approx(env.budget.slack(1, int(env.sizes[0, 11])))
    assert [seen[n] for n in ("last_bits", "last_sparsity", "alpha", "beta")] == [1.0, 0.75, 0.25, 0.5]
