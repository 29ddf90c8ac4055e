"""What a step does to the student, without any reinforcement learning: compress, fine-tune, measure."""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from detectors.errors import InputError
from hsq_env.accuracy import Scale, scale_of
from hsq_env.choices import Choice
from hsq_env.distillation import AKD, JUDGING_WEIGHTS
from hsq_env.finetuning import BRIEF_RATES, LearningRates, akd_loss_and_divergence, finetune_block, float32_outputs
from hsq_env.lessons import lesson
from hsq_env.prefixes import Decision, Node, Outcome, PrefixTable
from hsq_env.shortcuts import Shortcuts
from hsq_env.states import Dependencies, KeptStates, Route, run, straight
from hsq_env.step_policy import PolicyState, StepPolicy
from hsq_env.student import LayerInfo, Student, evaluate, trace_layers
from hsq_env.task import Batch, Distilled, QuickMetric, State, Task

FINETUNE_SCOPES = ("layer", "block", "all")
DISTILLATIONS = ("akd", "spark", "akd+spark")
POLICY_EPISODES = 3  # in which SPARK's policy learns
TABLE_MEGABYTES = 128.0  # of visited prefixes; every worker may fill as much


def quick_form(task: Task) -> QuickMetric | None:
    """The task, if it has the quick form of its own metric; not if a subclass has changed only the metric itself."""
    if not isinstance(task, QuickMetric):
        return None
    depth = {name: i for i, kind in reversed([*enumerate(type(task).__mro__)]) for name in vars(kind)}
    own = all(depth.get("quick_" + name, 0) <= depth.get(name, 0) for name in ("predictions", "metric"))
    return task if own else None


def _mean(losses: Sequence[Tensor]) -> float:
    return torch.stack(list(losses)).double().mean().item()


class Compressor:
    """A student, the states of the images that it is judged and trained on, and the decisions that led to it.

    ``node`` is where the episode stands. The student may lag behind it: a visited prefix is answered from the table,
    and the student follows only when something new has to be computed or someone asks for it.

    :param task: teacher, data, metric
    :param finetune_steps: minibatches per layer; 0 for none
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
        finetune_steps: int = 2,
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
        self.bfloat16, self.shortcuts = bfloat16, shortcuts or Shortcuts()
        self.task, self.criterion, self.rates = task, criterion or AKD(), rates
        self.judging = AKD(weights=JUDGING_WEIGHTS)
        self.distillation = distillation
        weighs = distillation != "akd" and finetune_steps > 0
        self.policy = StepPolicy(self.criterion, policy_episodes) if weighs else None
        self.finetune_steps, self.finetune_scope = finetune_steps, finetune_scope
        self.infos: tuple[LayerInfo, ...] = trace_layers(task)
        if not self.infos:
            raise InputError(f"The model of task '{task.name}' has no Conv2d or Linear layer to compress.")
        self._student = Student(task, self.infos, activation_bits, pattern, keep_variants=self.shortcuts.variants)
        self._routes = self._plan_routes()
        self._search = KeptStates(task.evaluation("search"), self.shortcuts.resume)
        self._pool = KeptStates(task.finetuning(), self.shortcuts.resume, tuning=True, bfloat16=bfloat16)
        self._teacher_stages = task.stages(task.teacher)
        self._teacher_outputs = [self._distil(b) for b in task.finetuning()] if finetune_steps else []
        self._teacher_on_search = [self._distil(batch) for batch in task.evaluation("search")]
        self.scale = scale_of(task, "search", evaluate(task, self._teacher_stages, "search"))
        self.table = PrefixTable(int(table_megabytes * 1e6) if self.shortcuts.prefixes else 0)
        self.node = self._built = self.table.root

    def _plan_routes(self) -> dict[str, Route]:
        """How a forward pass goes on behind each block."""
        blocks = {info.block: self._student.block(info.block) for info in self.infos}
        if self.finetune_scope == "all":  # every stage changes
            return dict.fromkeys(blocks, straight(0, len(self._student.stages)))
        if not (self.shortcuts.resume and self.shortcuts.branches):
            return {name: straight(block.start, len(self._student.stages)) for name, block in blocks.items()}
        dependencies = Dependencies(self._student.stages, self.task.calibration()[0])
        return {name: dependencies.route(block) for name, block in blocks.items()}

    @torch.no_grad()
    def _distil(self, batch: Batch) -> Sequence[Distilled]:
        return self.task.distilled(run(self._teacher_stages, {"images": batch.images}))

    def repair_settings(self) -> tuple[Any, ...]:
        """Everything but the share of the task loss that decides what a repair does to a student."""
        student = self._student
        repair = (self.finetune_steps, self.finetune_scope, self.rates, self.criterion, self.bfloat16)
        return *repair, student.activation_bits, student.pattern

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

    def known(self, choice: Choice, alpha: float) -> Outcome | None:
        """Go on to a decision whose outcome the table holds; None, and nothing happens, if it does not.

        A step that teaches the policy is always taken.
        """
        found = self.table.find(self.node, Decision(choice, alpha)) if self._looks_up() else None
        if found is None:
            return None
        self.node = found
        return found.outcome

    def knows(self, choice: Choice, alpha: float) -> bool:
        """Whether ``known`` would find a decision; nothing happens."""
        found = self.node.children.get(Decision(choice, alpha)) if self._looks_up() else None
        return found is not None and found.outcome is not None

    def _looks_up(self) -> bool:
        teaches = self.policy is not None and self.policy.wants_lesson(self.node.depth)
        return self.shortcuts.prefixes and not teaches

    def go_to(self, decisions: Sequence[Decision]) -> None:
        """Go to where these decisions lead from the first layer on; the student follows when it is needed."""
        self.node = self.table.root
        for decision in decisions:
            self.node = self.table.add(self.node, decision, None)

    def fork(self) -> "Compressor":
        """An independent compressor at the same place, which shares what no step changes and the table."""
        other = copy.copy(self)
        other._student = self._student.copy()
        other._search, other._pool = self._search.fork(), self._pool.fork()
        other.policy = copy.deepcopy(self.policy)
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
        if self.finetune_scope == "all":
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
        for kept in (self._search, self._pool):
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
        self._finetune(index, decision.alpha)
        self._finish(wanted[index])

    def _finish(self, node: Node) -> None:
        """The student is at ``node``; keep its block's weights if that is the block's last layer."""
        self._built = node
        index = node.depth - 1
        ends = index == self._student.layers_of(self.infos[index].block).stop - 1
        if self.shortcuts.prefixes and ends and self.finetune_scope != "all" and node.weights is None:
            self.table.keep_weights(node, self._student.pack_block(index))

    # ---- one step

    def compress(self, choice: Choice) -> None:
        """Prune and quantize the next layer."""
        self._catch_up()
        if not self.shortcuts.in_place:
            self._student = self._student.copy()
        self._compress(self.node.depth, choice)

    def finetune(self, alpha: float) -> Tensor:
        """A few gradient steps with the AKD loss on the block of the layer that was compressed.

        Which minibatches are taken depends on the layer alone, so that equal choices give equal students. Where a loss
        is no number, the block gets back what it had before.

        :param alpha: share of the task loss
        :return: bool scalar, whether the losses stayed finite
        """
        return self._finetune(self.node.depth, alpha, teach=True)

    def measure(self, choice: Choice, alpha: float, finite: Tensor) -> Outcome:
        """What the student is worth on the search split, noted for the decision that was taken.

        :param finite: of ``finetune``
        """
        accuracy, divergence = self.judge()
        outcome = Outcome(accuracy, bool(finite), divergence)
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
        self._finetune(index, alpha, weigh=False)
        yield self._student, self._routes[self.infos[index].block]
        self._student.reset_modules(self._student.modules_of(self.finetune_scope, index))

    def _compress(self, index: int, choice: Choice) -> None:
        for kept in (self._search, self._pool):
            kept.enter(self._routes[self.infos[index].block])
        self._student.compress(index, choice)

    def _finetune(self, index: int, alpha: float, weigh: bool = True, teach: bool = False) -> Tensor:
        """The repair of a layer.

        :param weigh: let the policy weigh places, if there is one
        :param teach: note what the policy may learn from it
        """
        if not self.finetune_steps:
            return torch.tensor(True)
        alpha = 0.0 if self.distillation == "spark" else alpha
        modules = self._student.modules_of(self.finetune_scope, index)
        picked = [(index * self.finetune_steps + i) % len(self._pool.batches) for i in range(self.finetune_steps)]
        losses = [partial(self._loss, i, alpha, weigh) for i in picked]
        wanted = teach and self.policy is not None and self.policy.wants_lesson(index)
        afterwards = partial(self._note_lesson, picked[-1]) if wanted else lambda optimizer: None
        return finetune_block(
            self._student, modules, losses, self.rates, self.shortcuts.block_gradient, afterwards=afterwards
        )

    def _loss(self, index: int, alpha: float, weighted: bool) -> tuple[Tensor, Tensor]:
        """The AKD loss on one batch of the pool, and its KL part, which the policy weighs if there is one."""
        batch = self._pool.batches[index]
        teacher = self._teacher_of(index)
        outputs = float32_outputs(self._forward(index), batch.images.device, self.bfloat16)
        weigh = partial(self.policy.weights, self.task) if weighted and self.policy is not None else None
        return akd_loss_and_divergence(self.task, self.criterion, alpha, outputs, batch, teacher, weigh)

    def _teacher_of(self, index: int) -> Sequence[Distilled]:
        """What the outputs on one batch of the pool are to be."""
        return self._teacher_outputs[index] if self.shortcuts.teacher else self._distil(self._pool.batches[index])

    def _note_lesson(self, index: int, optimizer: torch.optim.Optimizer) -> None:
        """Note what a batch of the pool teaches the policy, the next one being held back."""
        assert self.policy is not None
        batches = self._pool.batches
        numbers = {id(batch): number for number, batch in enumerate(batches)}

        def forward(batch: Batch) -> State:
            return float32_outputs(self._forward(numbers[id(batch)]), batch.images.device, self.bfloat16)

        def teacher(batch: Batch) -> Sequence[Distilled]:
            return self._teacher_of(numbers[id(batch)])

        held_back = batches[(index + 1) % len(batches)]
        self.policy.lessons.append(
            lesson(self._student, self.policy.spark, optimizer, forward, teacher, batches[index], held_back)
        )

    def _forward(self, index: int) -> Callable[[], State]:
        """The student's forward pass on one batch of the pool."""
        stages, route = self._student.stages, self._pool.route
        if self.shortcuts.resume or self.shortcuts.block_gradient:
            state = self._pool.state(stages, index)
        else:
            state = run(stages, {"images": self._pool.batches[index].images}, 0, route.start)
        return lambda: route.finish(stages, state)

    @torch.no_grad()
    def judge(self) -> tuple[float, float]:
        """The student on the search split; NaN where outputs are no numbers.

        :return: its accuracy (``hsq_env.accuracy``), and the divergence from the teacher: the KL part of the AKD loss
            with ``JUDGING_WEIGHTS``
        """
        scale = self.scale
        if not self.shortcuts.teacher:
            scale = Scale(evaluate(self.task, self._teacher_stages, "search"), scale.untreated)
        metric, divergence = self._student_on_search_split()
        return scale.accuracy(metric), divergence

    def _student_on_search_split(self) -> tuple[float, float]:
        stages, task = self._student.stages, self.task
        quick = quick_form(task) if self.shortcuts.metric else None
        predictions: list[Any] = []
        finite: list[Tensor] = []
        divergences: list[Tensor] = []
        for index, batch in enumerate(self._search.batches):
            outputs = self._search.route.finish(stages, self._search.state(stages, index))
            distilled = task.distilled(outputs)
            finite += [item.tensor.isfinite().all() for item in distilled]
            teacher = self._teacher_on_search[index] if self.shortcuts.teacher else self._distil(batch)
            divergences.append(self.judging.loss(distilled, teacher))
            if quick is not None:
                predictions.append(quick.quick_predictions(outputs, batch))
            elif all(finite):
                predictions.append(task.predictions(outputs, batch))
            else:
                return math.nan, math.nan
        if quick is None:
            return task.metric(predictions, "search"), _mean(divergences)
        if not bool(torch.stack(finite).all()):
            return math.nan, math.nan
        return quick.quick_metric(predictions), _mean(divergences)

    # ---- pickling

    def __getstate__(self) -> dict[str, Any]:
        """The table stays behind: it is only a shortcut."""
        state = dict(self.__dict__)
        for name in ("_teacher_stages", "node", "_built"):
            del state[name]
        return {**state, "decisions": self.node.decisions(), "built": self._built.decisions()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        decisions, built = state.pop("decisions"), state.pop("built")
        self.__dict__.update(state)
        self._teacher_stages = self.task.stages(self.task.teacher)
        self.go_to(built)
        self._built = self.node
        self.go_to(decisions)
