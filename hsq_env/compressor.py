"""What a step does to the student, without any reinforcement learning: compress, fine-tune, measure."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from detectors.errors import InputError
from hsq_env.choices import Choice
from hsq_env.distillation import AKD
from hsq_env.finetuning import BRIEF_RATES, LearningRates
from hsq_env.judge import Judge
from hsq_env.layer_info import LayerInfo, trace_layers
from hsq_env.outcomes import OutcomeFile, Outcomes, key_of
from hsq_env.prefixes import Decision, Node, Outcome, PrefixTable
from hsq_env.repair import Repair
from hsq_env.shortcuts import Shortcuts
from hsq_env.states import Dependencies, Route, straight
from hsq_env.step_policy import PolicyState, StepPolicy
from hsq_env.student import Student
from hsq_env.task import Task
from hsq_env.teacher import Teacher

POLICY_EPISODES = 3  # in which SPARK's policy learns
TABLE_MEGABYTES = 128.0  # of visited prefixes; every worker may fill as much


class Compressor:
    """A student, what judges and repairs it, and the decisions that led to it.

    ``node`` is where the episode stands. The student may lag behind it: a visited prefix is answered from the table,
    and the student follows only when something new has to be computed or someone asks for it.

    :param task: teacher, data, metric
    :param step_minibatches: minibatches per layer; 0 for none
    :param finetune_scope: what they train, "layer", "block" or "all"
    :param rates: learning rates of the brief fine-tuning
    :param activation_bits: see ``Student``
    :param pattern: of sparsity, see ``Student``
    :param shortcuts: what may be reused; none of them changes a result
    :param table_megabytes: limit of the table of visited prefixes
    :param criterion: the distillation loss
    :param bfloat16: fine-tune under autocast
    :param distillation: "akd"; "akd+spark", in which a policy weighs its places; "spark", the same without a task loss
    :param policy_episodes: in which that policy learns
    """

    def __init__(
        self,
        task: Task,
        step_minibatches: int = 2,
        finetune_scope: str = "block",
        rates: LearningRates = BRIEF_RATES,
        activation_bits: int | str | None = 8,
        pattern: str = "unstructured",
        shortcuts: Shortcuts | None = None,
        table_megabytes: float = TABLE_MEGABYTES,
        criterion: AKD | None = None,
        bfloat16: bool = False,
        distillation: str = "akd",
        policy_episodes: int = POLICY_EPISODES,
    ) -> None:
        self.task, self.shortcuts = task, shortcuts or Shortcuts()
        self.infos: tuple[LayerInfo, ...] = trace_layers(task)
        if not self.infos:
            raise InputError(f"The model of task '{task.name}' has no Conv2d or Linear layer to compress.")
        self._student = Student(task, self.infos, activation_bits, pattern, keep_variants=self.shortcuts.variants)
        teacher = Teacher(task)
        self.judge = Judge(teacher, self.shortcuts)
        self.repair = Repair(
            teacher,
            self.shortcuts,
            step_minibatches,
            finetune_scope,
            rates,
            criterion or AKD(),
            bfloat16,
            distillation,
            policy_episodes,
        )
        self._routes = self._plan_routes()
        self.table = PrefixTable(int(table_megabytes * 1e6) if self.shortcuts.prefixes else 0)
        self.node = self._built = self.table.root
        self._outcomes: Outcomes | None = None
        self._problem = b""

    def share(self, outcomes: Outcomes, problem: bytes) -> None:
        """Read and write shared outcomes there from now on.

        :param problem: everything that outcomes depend on beside decisions and SPARK's policy
        """
        self._outcomes, self._problem = outcomes, problem

    @property
    def outcomes_file(self) -> Path | None:
        """Where outcomes are shared, if they are in a file."""
        return self._outcomes.path if isinstance(self._outcomes, OutcomeFile) else None

    def _plan_routes(self) -> dict[str, Route]:
        """How a forward pass goes on behind each block."""
        blocks = {info.block: self._student.block(info.block) for info in self.infos}
        if self.repair.scope == "all":  # every stage changes
            return dict.fromkeys(blocks, straight(0, len(self._student.stages)))
        if not (self.shortcuts.resume and self.shortcuts.branches):
            return {name: straight(block.start, len(self._student.stages)) for name, block in blocks.items()}
        dependencies = Dependencies(self._student.stages, self.task.calibration()[0])
        return {name: dependencies.route(block) for name, block in blocks.items()}

    @property
    def policy(self) -> StepPolicy | None:
        """SPARK's, if one weighs places."""
        return self.repair.policy

    def repair_settings(self) -> tuple[Any, ...]:
        """Everything but the share of the task loss that decides what a repair does to a student."""
        return *self.repair.settings(), self._student.activation_bits, self._student.pattern

    # ---- where the episode stands

    @property
    def student(self) -> Student:
        """The student as the decisions so far left it."""
        self._catch_up()
        return self._student

    def reset(self) -> None:
        """Back to the teacher's weights, with a policy that has learned what the last episode taught."""
        if self.policy is not None and self.policy.end_episode():
            self._forget()
        self.node = self.table.root

    def load_policy(self, state: PolicyState | None) -> None:
        """Go on with another policy, at the teacher's weights."""
        if self.policy is not None and state is not None and self.policy.load(state):
            self._forget()
        self.node = self.table.root

    def _forget(self) -> None:
        """Under another policy equal decisions give other students; forks may still need the table as it was."""
        self.table = PrefixTable(self.table.limit)
        self._go_back(0)
        self.node = self._built = self.table.root

    def revisit(self, choice: Choice, alpha: float) -> Outcome | None:
        """Go on to a decision whose outcome the table holds; None, and nothing happens, if it does not.

        A step that teaches the policy is always taken.
        """
        found = self.table.find(self.node, Decision(choice, alpha)) if self._looks_up() else None
        if found is None:
            return None
        self.node = found
        return found.outcome

    def has_visited(self, choice: Choice, alpha: float) -> bool:
        """Whether ``revisit`` would find a decision; nothing happens."""
        found = self.node.children.get(Decision(choice, alpha)) if self._looks_up() else None
        return found is not None and found.outcome is not None

    def is_known(self, choice: Choice, alpha: float) -> bool:
        """Whether ``revisit`` or ``adopt`` would find a decision; nothing happens."""
        key = self._key(choice, alpha)
        shared = key is not None and self._outcomes is not None and self._outcomes.get(key) is not None
        return shared or self.has_visited(choice, alpha)

    def _looks_up(self) -> bool:
        teaches = self.policy is not None and self.policy.wants_lesson(self.node.depth)
        return self.shortcuts.prefixes and not teaches

    def _key(self, choice: Choice, alpha: float) -> bytes | None:
        """Under which others know of a decision; None if they cannot."""
        learns = self.policy is not None and self.policy.learning
        if self._outcomes is None or learns or not self.shortcuts.prefixes:
            return None
        problem = self._problem + (self.policy.digest() if self.policy is not None else b"")
        return key_of(problem, [*self.node.decisions(), Decision(choice, alpha)])

    def adopt(self, choice: Choice, alpha: float) -> Outcome | None:
        """Go on to a decision whose outcome others have measured; None, and nothing happens, if they have not."""
        key = self._key(choice, alpha)
        if key is None or self._outcomes is None:
            return None
        found = self._outcomes.get(key)
        if found is not None:
            self.node = self.table.add(self.node, Decision(choice, alpha), found)
        return found

    def go_to(self, decisions: Sequence[Decision]) -> None:
        """Go to where these decisions lead from the first layer on; the student follows when it is needed."""
        self.node = self.table.root
        for decision in decisions:
            self.node = self.table.add(self.node, decision, None)

    def fork(self) -> "Compressor":
        """An independent compressor at the same place, which shares what no step changes and the table."""
        other = copy.copy(self)
        other._student = self._student.copy()
        other.judge, other.repair = self.judge.fork(), self.repair.fork()
        return other

    def _catch_up(self) -> None:
        """Make the student what the decisions so far lead to, doing anew only what is not done yet."""
        if self._built is self.node:
            return
        wanted, done = self.node.path(), self._built.path()
        common = 0
        while common < min(len(wanted), len(done)) and wanted[common].decision == done[common].decision:
            common += 1
        if common < len(done):
            common = self._go_back(common)
        self._built = wanted[common - 1] if common else self.table.root
        while self._built.depth < len(wanted):
            self._follow(wanted)

    def _go_back(self, depth: int) -> int:
        """Undo the blocks that hold decisions from ``depth`` on; how many decisions are left."""
        if self.repair.scope == "all":
            depth = 0
        if depth == 0:
            self._student.reset()
            first = 0
        else:
            first = self._student.layers_of(self.infos[depth].block).start
            for index in range(first, len(self.infos)):
                if index == self._student.layers_of(self.infos[index].block).start:
                    self._student.reset_modules(self._student.modules_of("block", index))
        stage = self._student.block(self.infos[first].block).start
        for kept in (self.judge.kept, self.repair.kept):
            kept.rewind(stage)
        return first

    def _follow(self, wanted: list[Node]) -> None:
        """Take the next decision, or the next block of decisions where its weights are kept."""
        index = self._built.depth
        layers = self._student.layers_of(self.infos[index].block)
        last = wanted[layers.stop - 1] if layers.stop <= len(wanted) else None
        if last is not None and index == layers.start and last.weights is not None:
            self._student.unpack_block(index, last.weights)
            self._built = last
            return
        decision = wanted[index].decision
        assert decision is not None
        self._compress(index, decision.choice)
        self.repair.run(self._student, index, decision.alpha)
        self._finish(wanted[index])

    def _finish(self, node: Node) -> None:
        """The student is at ``node``; keep its block's weights if that is the block's last layer."""
        self._built = node
        index = node.depth - 1
        ends = index == self._student.layers_of(self.infos[index].block).stop - 1
        if self.shortcuts.prefixes and ends and self.repair.scope != "all" and node.weights is None:
            self.table.keep_weights(node, self._student.pack_block(index))

    # ---- one step

    def compress(self, choice: Choice) -> None:
        """Prune and quantize the next layer."""
        self._catch_up()
        if not self.shortcuts.in_place:
            self._student = self._student.copy()
        self._compress(self.node.depth, choice)

    def finetune(self, alpha: float) -> Tensor:
        """A few gradient steps on the block of the layer that was compressed, see ``Repair``.

        :param alpha: share of the task loss
        :return: bool scalar, whether the losses stayed finite
        """
        return self.repair.run(self._student, self.node.depth, alpha, teach=True)

    def measure(self, choice: Choice, alpha: float, finite: Tensor) -> Outcome:
        """What the student is worth on the search split, noted for the decision that was taken.

        :param finite: of ``finetune``
        """
        accuracy, divergence = self.judge.measure(self._student.stages)
        outcome = Outcome(accuracy, bool(finite), divergence)
        key = self._key(choice, alpha)
        if key is not None and self._outcomes is not None:
            self._outcomes.put(key, outcome)
        self.node = self.table.add(self.node, Decision(choice, alpha), outcome)
        self._finish(self.node)
        return outcome

    @contextmanager
    def alone(self, index: int, choice: Choice, alpha: float) -> Iterator[tuple[Student, Route]]:
        """One layer compressed and repaired as a step does it, all others as the teacher has them.

        Meant for a fork that nothing else uses, with layers in ascending order.

        :return: the student, until the end of the block, and the way through it
        """
        self.node = self.table.root
        self._catch_up()
        self._compress(index, choice)
        self.repair.run(self._student, index, alpha, weigh=False)
        yield self._student, self._routes[self.infos[index].block]
        self._student.reset_modules(self._student.modules_of(self.repair.scope, index))

    def _compress(self, index: int, choice: Choice) -> None:
        for kept in (self.judge.kept, self.repair.kept):
            kept.enter(self._routes[self.infos[index].block])
        self._student.compress(index, choice)

    # ---- pickling

    def __getstate__(self) -> dict[str, Any]:
        """The table stays behind: it is only a shortcut."""
        state = dict(self.__dict__)
        del state["node"], state["_built"]
        return {**state, "decisions": self.node.decisions(), "built": self._built.decisions()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        decisions, built = state.pop("decisions"), state.pop("built")
        self.__dict__.update(state)
        self.go_to(built)
        self._built = self.node
        self.go_to(decisions)
