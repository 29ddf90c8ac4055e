"""The plain training script on the tiny task."""

from collections.abc import Iterator
from pathlib import Path

import gymnasium as gym
import pytest
from tiny_task import TinyTask

from agents import train as script
from agents.algorithms import ALGORITHMS, action_space_of
from detectors.errors import InputError
from hsq_env.make import make_detection_env

ID = "HSQ-Tiny-v0"


@pytest.fixture(autouse=True)
def registered(tiny: TinyTask) -> Iterator[None]:
    """An id for the tiny task."""
    gym.register(ID, entry_point=make_detection_env, kwargs={"task": tiny, "step_minibatches": 0})
    yield
    gym.registry.pop(ID)


@pytest.mark.parametrize("algo", ["dqn", "maskable_ppo", "sac"])
def test_a_policy_is_trained_saved_loaded_and_evaluated(
    tiny: TinyTask, tmp_path: Path, algo: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "policy.zip"
    mean = script.train(algo, ID, timesteps=14, target_ratio=6.0, seed=1, out=out)
    assert f"mean return over 1 episodes: {mean:.4f}" in capsys.readouterr().out
    env = gym.make(ID, action_space=action_space_of(algo), target_ratio=6.0)
    policy = ALGORITHMS[algo].kind.load(out, env=env)
    observation, _ = env.reset()
    total, done = 0.0, False
    while not done:
        masks = {"action_masks": env.get_wrapper_attr("action_masks")()} if algo == "maskable_ppo" else {}
        action, _ = policy.predict(observation, deterministic=True, **masks)
        observation, reward, done, _, info = env.step(action)
        total += float(reward)
    assert mean == pytest.approx(total, abs=1e-5)
    assert info["ratio"] >= 6.0


def test_an_existing_policy_is_not_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "policy.zip"
    out.write_text("precious")
    with pytest.raises(InputError, match=r"policy\.zip exists already.*--out"):
        script.train("dqn", ID, out=out)
    assert out.read_text() == "precious"


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def command(*arguments: str) -> None:
        monkeypatch.setattr("sys.argv", ["train", *arguments])
        script.main()

    command("--env", ID, "--timesteps", "7", "--out", str(tmp_path / "p.zip"), "--target-ratio", "5")
    assert (tmp_path / "p.zip").is_file()
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        command("--algo", "rainbow", "--env", ID, "--out", str(tmp_path / "q.zip"))
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("error: Unknown agent 'rainbow'")


def test_the_script_stays_short() -> None:
    assert len(Path(script.__file__).read_text().splitlines()) < 80
