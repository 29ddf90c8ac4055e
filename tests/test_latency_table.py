"""Latencies as costs: read from a file, rewarded, and bounded with masks."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_cli import on_tiny  # noqa: F401 - a fixture
from tiny_task import TinyTask

from agents.baselines.plans import integer_program_choices, random_choices
from agents.cli import main
from agents.explorer import Explorer
from agents.keep_best import KeepBest
from agents.search import search
from detectors.errors import InputError
from hsq_env.choices import Choice, choice_grid
from hsq_env.env import HSQEnv
from hsq_env.latency_table import LatencyTable, latency_budget, timed_as
from hsq_env.layer_info import LayerInfo

SHARED = ("block1.conv2", "block2.conv2")  # whose input channels can be taken out of the network
SHARES = (0.0, 0.25, 0.5, 0.75)


def row(layer: int) -> dict[str, float]:
    """Microseconds: as many as bits for the first layer, twice as many for the second, and so on; less for channels."""
    times = {f"{bits}": 1e-6 * bits * (layer + 1) for bits in (2, 4, 8, 32)}
    return times | {f"{b}/{s:g}": 1e-6 * b * (1 - s) * (layer + 1) for b in (2, 4, 8) for s in SHARES[1:]}


@pytest.fixture
def table(infos: tuple[LayerInfo, ...]) -> LatencyTable:
    return LatencyTable("table", {info.name: row(layer) for layer, info in enumerate(infos)})


@pytest.fixture
def file(table: LatencyTable, tmp_path: Path) -> Path:
    path = tmp_path / "latency.json"
    path.write_text(json.dumps({"layers": [{"name": n, "seconds": s} for n, s in table.seconds.items()]}))
    return path


def test_only_whole_channels_have_columns_of_their_own() -> None:
    assert timed_as(Choice(4, 0.5), "unstructured") == timed_as(Choice(4, 0.5), "n:m") == "4"
    assert timed_as(Choice(4, 0.5), "channels") == "4/0.5" and timed_as(Choice(4), "channels") == "4"


def test_a_table_is_read_as_it_was_written(file: Path, table: LatencyTable, infos: tuple[LayerInfo, ...]) -> None:
    read = LatencyTable.read(file)
    assert read.seconds == table.seconds
    names = frozenset(info.name for info in infos)
    found = read.nanoseconds(infos, choice_grid(), "channels", names)
    assert found[2].tolist() == [round(1e3 * b * (1 - s) * 3) for b in (2, 4, 8) for s in SHARES]
    dense = [4000] * 4 + [8000] * 4 + [16000] * 4
    assert read.nanoseconds(infos, choice_grid(), "unstructured", names)[1].tolist() == dense
    others = read.nanoseconds(infos, choice_grid(), "channels", names - {"block1.conv1"})
    assert others[1].tolist() == dense and others[2].tolist() == found[2].tolist()
    assert LatencyTable.read(file).to_json() == json.loads(file.read_text())
    assert read.float_nanoseconds(infos).tolist() == [32000 * (layer + 1) for layer in range(7)]


@pytest.mark.parametrize(
    "text",
    [
        '{"layers": [{"name": "a", "seconds": {"8": ' + "9" * 400 + "}}]}",
        "", "[]", "{}", '{"layers": [{"name": "a"}]}', '{"layers": [{"name": "a", "seconds": 3}]}', "\xff",
    ],
)  # fmt: skip
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "latency.json").write_text(text, "latin-1")
    with pytest.raises(InputError, match=r"cannot be read .* hsq latency --out FILE"):
        LatencyTable.read(tmp_path / "latency.json")


@pytest.mark.parametrize("seconds", ["0", "-1", "NaN", "Infinity", "1e300", "1e6"])
def test_impossible_times_are_refused(tmp_path: Path, seconds: str) -> None:
    (tmp_path / "latency.json").write_text(f'{{"layers": [{{"name": "a", "seconds": {{"8": {seconds}}}}}]}}')
    with pytest.raises(InputError, match="times that cannot be"):
        LatencyTable.read(tmp_path / "latency.json")


def test_a_table_of_another_network_is_refused(tiny: TinyTask, table: LatencyTable) -> None:
    with pytest.raises(InputError, match="lack the layer 'stem'"):
        HSQEnv(tiny, latency_table=LatencyTable("t", {k: v for k, v in table.seconds.items() if k != "stem"}))
    without = {k: {c: s for c, s in v.items() if "/" not in c} for k, v in table.seconds.items()}
    with pytest.raises(InputError, match=r"lack '2/0\.25'.*--sparsity-pattern channels"):
        HSQEnv(tiny, latency_table=LatencyTable("t", without), sparsity_pattern="channels")
    with pytest.raises(InputError, match=r"lack the layer 'head\.0' of \(16, 16, 1, 1\)"):
        HSQEnv(tiny, latency_table=LatencyTable("t", table.seconds, {"head.0": (16, 8, 1, 1)}))


def test_a_file_is_read_whole(tmp_path: Path, infos: tuple[LayerInfo, ...]) -> None:
    path = tmp_path / "latency.json"
    layers = [{"name": "stem", "seconds": {"8": 999999.5}, "shape": [16, 1, 3, 3]}, {"name": "x", "seconds": {}}]
    path.write_text(json.dumps({"machine": "this", "layers": layers}))
    read = LatencyTable.read(path)
    assert read.source == str(path) and read.shapes == {"stem": (16, 1, 3, 3)}
    assert read.seconds == {"stem": {"8": 999999.5}, "x": {}}
    assert read.record == read.to_json() == {"machine": "this", "layers": layers}
    assert read.nanoseconds(infos[:1], [Choice(8)], "", frozenset()).tolist() == [[999999500000000]]


def test_the_budget_names_the_fastest_plan() -> None:
    costs = np.array([[1_000_000, 2_000_000], [3_000_001, 5_000_000]])
    with pytest.raises(InputError, match=r"3\.9 ms cannot be reached: the table's fastest plan takes 4\.01 ms"):
        latency_budget(costs, 20_000_000, 3.9)
    for none in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="cannot be reached"):
            latency_budget(costs, 20_000_000, none)
    budget = latency_budget(costs, 20_000_000, 6.0)
    assert budget.mask(0, 0).tolist() == [True, True] and budget.share == pytest.approx(0.3)
    assert budget.mask(1, 1_000_000).tolist() == [True, True] and budget.mask(1, 2_000_000).tolist() == [True, False]


def test_the_fastest_plan_itself_is_reached() -> None:
    costs = np.array([[1_000_000, 2_000_000], [3_000_000, 5_000_000]])
    budget = latency_budget(costs, 20_000_000, 4.0)
    assert budget.mask(0, 0).tolist() == [True, False] and budget.largest_ratio == 5.0
    with pytest.raises(InputError, match=r"3\.75 ms cannot be reached: the table's fastest plan takes 4\.00 ms"):
        latency_budget(costs, 20_000_000, 3.75)
    with pytest.raises(InputError, match=r"fastest plan takes 4000\.00 ms"):
        latency_budget(1000 * costs, 20_000_000, 3.75)


def test_a_plans_time_is_that_of_its_layers(table: LatencyTable, infos: tuple[LayerInfo, ...]) -> None:
    choices = [Choice(2, 0.5), Choice(4), Choice(8, 0.75), Choice(8), Choice(4, 0.25), Choice(2), Choice(2)]
    kept = [1 - c.sparsity * (info.name in SHARED) for info, c in zip(infos, choices, strict=True)]
    expected = sum(1e-3 * c.bits * k * (n + 1) for n, (c, k) in enumerate(zip(choices, kept, strict=True)))
    assert table.milliseconds(infos, choices, "channels", frozenset(SHARED)) == pytest.approx(expected, rel=1e-12)
    assert table.milliseconds(infos, None, "channels", frozenset(SHARED)) == pytest.approx(0.896, rel=1e-12)


def test_nothing_takes_no_time(infos: tuple[LayerInfo, ...]) -> None:
    table = LatencyTable("t", {infos[0].name: {"8": 1e-12, "4": 1.6e-9, "32": 1e-12}})
    found = table.nanoseconds(infos[:1], [Choice(8), Choice(4)], "", frozenset())
    assert found.tolist() == [[1, 2]] and found.dtype == np.int64
    assert table.float_nanoseconds(infos[:1]).tolist() == [1]


def test_every_plan_meets_the_target(tiny: TinyTask, table: LatencyTable) -> None:
    env = HSQEnv(tiny, step_minibatches=0, latency_table=table, target_latency=0.1)
    assert env.costs is env.layer_costs.latencies and env.budget.limit == pytest.approx(100_000)
    rng = np.random.default_rng(0)
    spent = []
    for _ in range(8):
        observation, info = env.reset()
        while env.index < 7:
            assert info["action_mask"].any() and env.observation_space.contains(observation)
            observation, _, _, _, info = env.step(int(rng.integers(12)))
        plan = [env.choices.index(c) for c in info["plan"].choices]
        spent.append(int(env.costs[np.arange(7), plan].sum()))
        assert env.spent == spent[-1]
    assert max(spent) <= 100_000 < env.costs.mean(axis=1).sum()  # of plans drawn without a budget
    assert min(spent) > 56_000  # all at 2 bits; the mask leaves what fits
    for choices in (integer_program_choices(env), random_choices(env, rng)):
        assert env.costs[np.arange(7), choices].sum() <= 100_000


def test_without_a_target_the_budget_stays_in_bytes(tiny: TinyTask, table: LatencyTable) -> None:
    env = HSQEnv(tiny, latency_table=table, target_ratio=6.0)
    assert env.costs is env.sizes and env.spent == env.spent_bytes


def test_what_does_not_go_together(tiny: TinyTask, table: LatencyTable) -> None:
    for settings, sentence in (
        ({"target_latency": 0.1, "target_ratio": 6.0, "latency_table": table}, "has one budget"),
        ({"target_latency": 0.1}, "target_latency needs a table"),
        ({"reward": "latency"}, "'latency' needs a table"),
        ({"target_latency": 0.01, "latency_table": table}, "fastest plan takes 0.06 ms"),
    ):
        arguments: Any = settings
        with pytest.raises(InputError, match=sentence):
            HSQEnv(tiny, **arguments)


def test_a_search_within_a_latency(tiny: TinyTask, table: LatencyTable, tmp_path: Path) -> None:
    result = search(
        tiny, tmp_path / "run", Explorer("dqn", episodes=2), target_ratio=None, finetune_steps=2, finalists=1,
        latency_table=table, target_latency=0.1, sparsity_pattern="channels", say=lambda line: None,
    )  # fmt: skip
    found = result["latency"]
    assert set(found) == {"float32", "hsq"} and found["float32"] == pytest.approx(0.896)
    assert result["target_latency"] == 0.1
    choices = json.loads((tmp_path / "run" / "plan.json").read_text())["layers"]
    assert found["hsq"] == pytest.approx(
        sum(
            1e-3 * c["bits"] * (1 - c["sparsity"] * (c["name"] in SHARED)) * (layer + 1)
            for layer, c in enumerate(choices)
        )
    )
    assert found["hsq"] <= 0.1 and result["beta"] == 1.0 and result["target_ratio"] is None


def test_a_state_of_another_budget_is_refused(tiny: TinyTask, table: LatencyTable) -> None:
    free, tight = (HSQEnv(tiny, step_minibatches=0, latency_table=table, target_latency=t) for t in (0.5, 0.06))
    free.reset()
    for _ in range(5):
        free.step(8)
    tight.reset()
    with pytest.raises(InputError, match="spent more than the budget allows"):
        tight.set_state(free.get_state())
    assert tight.index == 0 and tight.allowed().any()


def test_within_a_latency_plans_are_compared_by_divergence(tiny: TinyTask, table: LatencyTable) -> None:
    for settings, bounded in (({"target_latency": 0.1}, True), ({}, False)):
        arguments: Any = settings
        env = HSQEnv(tiny, step_minibatches=0, reward="paper", latency_table=table, **arguments)
        kept, total = KeepBest(env), 0.0
        kept.reset()
        for _ in range(7):
            _, reward, _, _, info = kept.step(0)
            total += float(reward)
        assert env.bounded is bounded
        assert info["score"] == pytest.approx(-info["divergence"] if bounded else total)


@pytest.mark.parametrize(
    ("reward", "target_ratio", "target_latency", "beta"),
    [
        ("divergence", 6.0, None, 1.0),
        ("divergence", None, 0.1, 1.0),
        ("divergence", None, None, 0.95),
        ("latency", 6.0, None, 0.95),
        ("latency", None, 0.1, 1.0),
        ("energy", 6.0, None, 0.95),
    ],
)
def test_beta_leaves_room_for_a_cost_that_nothing_bounds(
    tiny: TinyTask,
    table: LatencyTable,
    tmp_path: Path,
    reward: str,
    target_ratio: float | None,
    target_latency: float | None,
    beta: float,
) -> None:
    result = search(
        tiny, tmp_path / "run", Explorer("ilp", episodes=1), target_ratio=target_ratio, finetune_steps=0, finalists=1,
        reward=reward, latency_table=table, target_latency=target_latency, say=lambda line: None,
    )  # fmt: skip
    assert result["beta"] == beta


@pytest.mark.usefixtures("on_tiny")
@pytest.mark.parametrize("ratio", ["6", "0"])
def test_the_command_refuses_two_budgets(tmp_path: Path, capsys: pytest.CaptureFixture[str], ratio: str) -> None:
    settings = ["--target-latency", "3", "--target-ratio", ratio, "--out", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as ended:
        main(["search", *settings])
    assert ended.value.code == 2 and "one budget" in capsys.readouterr().err and not (tmp_path / "run").exists()


@pytest.mark.usefixtures("on_tiny")
def test_a_ratio_of_nothing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["search", "--target-ratio", "0", "--out", str(tmp_path / "run")])
    assert ended.value.code == 2 and "cannot be reached" in capsys.readouterr().err
