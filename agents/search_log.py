"""What a search has found so far: announced, written down, taken up again."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import Any

from agents.episode import Episode
from agents.run_folder import RunFolder
from detectors.files import write_atomically
from hsq_env.choices import Choice, Plan


@dataclass
class SearchLog:
    """What a search has found so far.

    :param say: prints a line
    :param folder: where the best plan so far is written; None for nowhere
    :param merit: of accuracy and ratio, smaller is better, where plans are compared by it (see ``KeepBest``)
    :param bounded: whether there is a budget without a target ratio, of time
    :param notes: what else a search has to tell, by name; callables are called when they are written
    :param ended: whether there is nothing left to look for
    :param told: what the notes of a search that has ended were
    :param record: a file to which every finished episode is added
    :param on_episode: called with every finished episode and its score
    """

    say: Callable[[str], None]
    folder: RunFolder | None = None
    episodes: list[Episode] = field(default_factory=list)
    best_score: dict[float | None, float] = field(default_factory=dict)  # by target ratio
    steps: int = 0
    visited_steps: int = 0  # that the table of visited prefixes answered
    merit: Callable[[float, float], float] | None = None
    bounded: bool = False
    notes: dict[str, Any] = field(default_factory=dict)
    ended: bool = False
    told: dict[str, Any] = field(default_factory=dict)
    record: Path | None = None
    on_episode: Callable[[Episode, float], object] = lambda episode, score: None

    def count(self, steps: tuple[int, int]) -> None:
        """Add the ``steps_taken`` of an environment."""
        self.steps, self.visited_steps = self.steps + steps[0], self.visited_steps + steps[1]

    def note(self, episode: Episode, info: dict[str, Any]) -> None:
        """Keep and announce a finished episode, and write it to disk if it is the best for its target.

        :param info: of its last step, from ``KeepBest``
        """
        if "model" in info and info["score"] > self.best_score.get(episode.target_ratio, -math.inf):
            self.best_score[episode.target_ratio] = info["score"]
            if self.folder is not None:
                self.folder.write_model(info["model"], episode.target_ratio)  # first: a full disk refuses it sooner
                self.folder.write_plan(episode.plan, episode.target_ratio)
        self.episodes.append(episode)
        if self.record is not None:
            with open(self.record, "a") as file:
                file.write(json.dumps({**episode.to_json(), "score": info.get("score")}) + "\n")
        aim = f" (asked {episode.target_ratio:g}x)" if len(self.best_score) > 1 else ""
        self.say(
            f"episode {len(self.episodes)} ({episode.source}): accuracy {episode.accuracy:.4f} at "
            f"{episode.ratio:.2f}x{aim}, divergence {episode.divergence:.3f}, {episode.seconds:.0f} s"
        )
        self.on_episode(episode, self.score(episode))

    def end(self) -> None:
        """Nothing more is looked for: notes become what they have to tell."""
        self.told, self.notes, self.ended = self.diagnostics(), {}, True

    def diagnostics(self) -> dict[str, Any]:
        """What the notes have to tell, as JSON has it."""
        return {**self.told, **{name: note() if callable(note) else _plain(note) for name, note in self.notes.items()}}

    def recover(self, layers: Sequence[str], anew: bool) -> list[Episode]:
        """Take episodes back that were finished after those that are known, from the record.

        :param layers: names
        :param anew: those episodes will be played again; the record forgets them
        :return: those that were taken
        """
        if self.record is None or not self.record.is_file():
            return []
        lines = self.record.read_bytes().splitlines(keepends=True)
        if anew:
            write_atomically(self.record, b"".join(lines[: len(self.episodes)]))
            return []
        taken, whole = [], lines[: len(self.episodes)]
        for line in lines[len(self.episodes) :]:
            try:
                row = json.loads(line)
            except ValueError:  # torn
                continue
            whole.append(line.rstrip(b"\n") + b"\n")
            score, choices = row.pop("score"), tuple(Choice(*choice) for choice in row.pop("choices"))
            episode = Episode(plan=Plan(tuple(layers), choices), **row)
            taken.append(episode)
            if score is not None:
                best = self.best_score.get(episode.target_ratio, -math.inf)
                self.best_score[episode.target_ratio] = max(best, score)
        write_atomically(self.record, b"".join(whole))
        self.episodes += taken
        return taken

    def best_so_far(self) -> str:
        """The best plan for the target of the last episode, in words; nothing where none has reached it yet."""
        target = self.episodes[-1].target_ratio if self.episodes else None
        best = self.best_plans(1, target)
        if not best:
            return ""
        aim = f" for {target:g}x" if target is not None and len({e.target_ratio for e in self.episodes}) > 1 else ""
        ratio, accuracy, reward = best[0].ratio, best[0].accuracy, best[0].total_reward
        return f"best{aim} {ratio:.2f}x, accuracy {accuracy:.4f}, reward {reward:.3f}"

    def score(self, episode: Episode) -> float:
        """What plans are compared by, higher is better; as ``KeepBest`` has it."""
        if self.merit is not None:
            return -self.merit(episode.accuracy, episode.ratio)
        return -episode.divergence if self.bounded or episode.target_ratio is not None else episode.total_reward

    def best_plans(self, count: int, target: float | None) -> list[Episode]:
        """The best finished episodes with different plans, best first, earlier ones first among equals.

        :param target: plans that reach this ratio count, whatever they were asked for; None for no target
        """
        good = [e for e in self.episodes if target is None or e.ratio >= target]
        different: dict[Plan, Episode] = {}
        aimed = [replace(e, target_ratio=target) for e in good]
        for episode in sorted(aimed, key=lambda e: -self.score(e)):
            different.setdefault(episode.plan, episode)
        return list(different.values())[:count]


def _plain(note: Any) -> Any:
    """Records as dictionaries, tuples as lists, as JSON has them."""
    return [asdict(row) if is_dataclass(row) and not isinstance(row, type) else list(row) for row in note]
