"""What stands in examples/ runs as it says."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from helpers import ROOT
from tiny_task import TinyTask

from agents.explore import SearchLog
from agents.find import Explorer
from hsq_env.env import HSQEnv

ZOO = """
import gymnasium as gym
from tiny_task import TinyTask
from hsq_env.env import HSQEnv

gym.register("HSQ-Tiny-v0", entry_point=lambda **arguments: HSQEnv(TinyTask(), finetune_steps=0, **arguments))
"""


def test_a_custom_agent_learns(tiny: TinyTask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    env = HSQEnv(tiny, target_ratio=9.0, finetune_steps=0, reward="divergence", beta=1.0)
    log, agents = SearchLog(lambda line: None), []
    explorer = Explorer("examples.custom_agent:make", episodes=30)
    explorer.check()
    agents.append(explorer.run(env, log))
    assert len(log.episodes) == 30 and all(e.ratio >= 9.0 for e in log.episodes)
    assert agents[0].baseline is not None and agents[0].episode == []
    returns = [e.total_reward for e in log.episodes]
    assert sum(returns[-10:]) > sum(returns[:10])  # seeded: it gets better


@pytest.mark.slow
def test_rl_zoo3_trains_with_the_file(tmp_path: Path) -> None:
    """With the tiny task in place of the detector, whose file it otherwise is."""
    settings = yaml.safe_load((ROOT / "examples" / "rl_zoo3_dqn.yml").read_text())
    (tmp_path / "zoo.yml").write_text(yaml.safe_dump({"HSQ-Tiny-v0": settings["HSQ-ResNet50-v0"]}))
    (tmp_path / "tiny_zoo.py").write_text(ZOO)
    command = [sys.executable, "-m", "rl_zoo3.train", "--algo", "dqn", "--env", "HSQ-Tiny-v0", "--gym-packages"]
    command += ["tiny_zoo", "--conf-file", "zoo.yml", "-n", "14", "--eval-freq", "-1", "-P"]
    path = f"{tmp_path}:{ROOT}:{ROOT / 'tests'}"
    done = subprocess.run(
        command, cwd=tmp_path, env={**__import__("os").environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert list((tmp_path / "logs" / "dqn").glob("HSQ-Tiny-v0_*/HSQ-Tiny-v0.zip"))
