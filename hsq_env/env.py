"""The Gymnasium environment: one step quantizes and prunes one layer, repairs it by distillation and is rewarded."""

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from detectors.errors import InputError
from hsq_env.actions import ACTION_SPACES, ALPHAS, ActionCodec
from hsq_env.budget import Budget, nearest_allowed
from hsq_env.checks import check_known, check_share
from hsq_env.choices import BITS, PATTERNS, SPARSITIES, Choice, Plan, check_activation_bits
from hsq_env.compressor import POLICY_EPISODES, TABLE_MEGABYTES, Compressor
from hsq_env.costs import LayerCosts
from hsq_env.env_state import EnvState
from hsq_env.finetuning import BRIEF_RATES, LearningRates
from hsq_env.identity import problem
from hsq_env.latency_table import LatencyTable
from hsq_env.observation import Progress, observation, observation_names, static_features, teacher_weights
from hsq_env.outcomes import Outcomes
from hsq_env.prefixes import Decision, Outcome
from hsq_env.render import render_ansi, render_bars
from hsq_env.repair import DISTILLATIONS, FINETUNE_SCOPES
from hsq_env.rewards import REWARDS, StepOutcome, reward_terms
from hsq_env.sensitivity import repaired_sensitivity, sensitivity
from hsq_env.shortcuts import Shortcuts
from hsq_env.student import Student
from hsq_env.task import Task

Observation = NDArray[np.float32]


class HSQEnv(gym.Env[Observation, Any]):
    """Compress a detector layer by layer.

    ## Description
    A trained detector, the teacher, is copied to a student. Every step takes one layer of the student in the order in
    which the layers first run, prunes and quantizes it as the action says, repairs the damage with a few minibatches
    of adaptive knowledge distillation and measures what is left of the accuracy. Layers that have not come up yet hold
    the teacher's weights.

    ## Action Space
    `Discrete(12)` by default: bits {2, 4, 8} x sparsity {0, 0.25, 0.5, 0.75}, bits-major, so that action
    `4 * i + j` has the i-th bit-width and the j-th sparsity. `action_space="multi_discrete"` is
    `MultiDiscrete([3, 4])`; `action_space="continuous"` is `Box(-1, 1, (2,))`, cut into equal intervals. With
    `alpha_control="agent"` an action also says alpha of the step's distillation, one of 0.1, 0.3, 0.6, 0.9:
    `Discrete(48)`, `MultiDiscrete([3, 4, 4])` or `Box(-1, 1, (3,))`.

    ## Observation Space
    `Box(0, 1, (52,))` with the default grid of 12 choices. `env.unwrapped.observation_names` holds the names.
    `observe_repaired=True` puts 12 more behind the sensitivities, what is left of each after a step's repair.

    | index | name | range |
    |---|---|---|
    | 0 | position of the layer among the layers | [0, 1] |
    | 1-3 | its number of weights (log), share of weights and of multiply-accumulates (roots) | [0, 1] |
    | 4-7 | output channels (log), input channels (log), kernel / 7, stride / 4 | [0, 1] |
    | 8-10 | depthwise, runs per forward pass / 8, linear | [0, 1] |
    | 11-12 | weights: standard deviation (log), 3 deviations over the peak | [0, 1] |
    | 13-14 | weights: share near zero, smallest over largest channel | [0, 1] |
    | 15-17 | inputs: standard deviation (log), 3 deviations over the peak, share of zeros | [0, 1] |
    | 18-29 | sensitivity to each choice, the distillation loss it causes alone (log) | [0, 1] |
    | 30-31 | accuracy so far / 2, divergence so far (log) | [0, 1] |
    | 32-33 | bytes over float32 bytes of the decided layers, share of weights to come | [0, 1] |
    | 34-35 | slack of the budget, its share of the teacher's bytes or time (1 without a budget) | [0, 1] |
    | 36-39 | bits / 8 and sparsity of the last choice, alpha, beta | [0, 1] |
    | 40-51 | whether the budget allows each action (each choice, if actions are not discrete) | {0, 1} |

    ## Rewards
    Accuracy is the student's metric on the search split over the teacher's (of restorers, gains in PSNR over the images
    as they come, see `hsq_env.accuracy`); divergence is the distillation loss between them on the same images, which
    tells apart what mAP on few images cannot. `reward` selects

    - `"paper"`: `beta * Accuracy - (1 - beta) * (bits / 8 + 1 - sparsity) / 2`;
    - `"paper-literal"`: the same with `sparsity` instead of `1 - sparsity`, as the paper prints it;
    - `"size"`: the cost is the layer's real bytes over its float32 bytes, weighted by its share of the model;
    - `"energy"`: the cost is the layer's bit operations (multiply-accumulates times bits of weight and activation,
      pruned weights left out) over those in float32, weighted by its share of these;
    - `"latency"`: the cost is the layer's time in the latency table over that in float32, likewise;
    - `"terminal"`: 0 until the last layer, then `beta * Accuracy - (1 - beta) * student bytes / teacher bytes`;
    - `"divergence"`: how much the step lowered `log(1 + divergence)`, times beta, less the cost of `"size"`.

    The terms stand in `info["reward_terms"]`. A student whose outputs are no numbers counts as accuracy 0, gets a
    term of -1 and sets `info["diverged"]`. So does a repair whose loss or gradient is no number: the block gets back
    what it had before, and the accuracy is that of the layer without a repair.

    ## Starting State
    The student equals the teacher; the observation is that of the first layer. Equal actions give equal rewards, bit
    for bit on one machine, whatever the seed (with SPARK, as long as its policy learns, within an episode). Only the
    target is drawn, where several were given.

    ## Episode End
    `terminated` with the last layer; never truncated.

    ## Information
    `step` and `reset` return `action_mask` (which choices the budget allows, over the 12 choices), `layer` (name of
    the layer to come) and, from `step`, `executed_action` (what was done, as an action of this space),
    `reward_terms`, `accuracy`, `divergence`, `diverged`, `ratio` (teacher file over student file; undecided layers
    count in float32), `target_ratio`. The last step adds `plan`.

    ## Arguments
    - `task`: a `hsq_env.task.Task`; the ids build one from their own arguments
    - `bits`, `sparsities`: the grid of choices
    - `action_space`: `"discrete"`, `"multi_discrete"`, `"continuous"`
    - `reward`: see above
    - `alpha`: share of the task loss in fine-tuning, [0, 1]; `beta`: weight of accuracy in the reward, [0, 1]; both
      may be changed between episodes through `reset(options={"alpha": ..., "beta": ...})`
    - `alpha_control`: `"fixed"`, or `"agent"` if actions choose alpha
    - `target_ratio`: teacher bytes over student bytes that every plan must reach; None for no budget; of several, every
      episode draws one, unless `reset(options={"target_ratio": ...})` says which
    - `latency_table`: a file of `hsq latency`, or a `hsq_env.latency_table.LatencyTable`; for the reward and for
      `target_latency`: milliseconds that all layers may take by that table, a budget in place of `target_ratio`
    - `step_minibatches`: minibatches per step, 0 for none; `finetune_scope`: `"layer"`, `"block"`, `"all"`
    - `learning_rates`: of the brief fine-tuning, a `hsq_env.finetuning.LearningRates`
    - `activation_bits`: 8, another number, `"match"` for the layer's weight bits, None for float32 activations; the
      first layer reads the picture in 8 bits
    - `sparsity_pattern`: `"unstructured"`, `"n:m"` (3:4, 2:4, 1:4) or `"channels"` (whole input channels, which makes
      networks faster too, see `hsq_env.channels`)
    - `shortcuts`: a `hsq_env.shortcuts.Shortcuts`, what a step may reuse; none changes a reward
    - `table_megabytes`: memory for what came of choices made before, so that repeating them costs nothing
    - `distillation`: `"akd"`; `"akd+spark"`, in which a policy weighs its places; `"spark"`, the same without a task
      loss; `policy_episodes`: in which that policy learns. Between these episodes equal actions give other rewards
    - `bfloat16`: fine-tune under bfloat16 autocast, twice as fast on GPUs and many processors
    - `sensitivities`: (layers, choices), measured on first use and kept on disk when None
    - `observe_repaired`: show agents the sensitivities after a repair too; measuring them costs a step per choice
    - `render_mode`: `"ansi"` or `"rgb_array"`

    ## Version History
    - v0: first version
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi", "rgb_array"], "render_fps": 4}

    def __init__(
        self,
        task: Task,
        bits: tuple[int, ...] = BITS,
        sparsities: tuple[float, ...] = SPARSITIES,
        action_space: str = "discrete",
        reward: str = "paper",
        alpha: float = 0.3,
        beta: float = 0.8,
        alpha_control: str = "fixed",
        target_ratio: float | Sequence[float] | None = None,
        latency_table: LatencyTable | str | Path | None = None,
        target_latency: float | None = None,
        step_minibatches: int = 2,
        finetune_scope: str = "block",
        learning_rates: LearningRates = BRIEF_RATES,
        activation_bits: int | str | None = 8,
        sparsity_pattern: str = "unstructured",
        shortcuts: Shortcuts | None = None,
        table_megabytes: float = TABLE_MEGABYTES,
        bfloat16: bool = False,
        distillation: str = "akd",
        policy_episodes: int = POLICY_EPISODES,
        sensitivities: NDArray[np.float64] | None = None,
        observe_repaired: bool = False,
        render_mode: str | None = None,
    ) -> None:
        check_known("action_space", action_space, ACTION_SPACES)
        check_known("reward", reward, REWARDS)
        check_known("alpha_control", alpha_control, ("fixed", "agent"))
        check_known("finetune_scope", finetune_scope, FINETUNE_SCOPES)
        check_known("sparsity_pattern", sparsity_pattern, PATTERNS)
        check_known("render_mode", render_mode, [None, *self.metadata["render_modes"]])
        check_known("distillation", distillation, DISTILLATIONS)
        check_share("alpha", alpha)
        check_share("beta", beta)
        if not 0 <= table_megabytes < math.inf:
            raise InputError(f"table_megabytes is {table_megabytes!r}: give 0 or more (--table-megabytes).")
        check_activation_bits(activation_bits)
        self._executed: list[int] = []
        self._accuracy, self._divergence = 1.0, 0.0
        self.task, self.reward, self.alpha, self.beta, self.render_mode = task, reward, alpha, beta, render_mode
        alphas = ALPHAS if alpha_control == "agent" else ()
        self.actions: ActionCodec = ACTION_SPACES[action_space](bits, sparsities, alphas)
        self.choices = self.actions.choices
        self.compressor = Compressor(
            task,
            step_minibatches,
            finetune_scope,
            learning_rates,
            activation_bits,
            sparsity_pattern,
            shortcuts,
            table_megabytes,
            bfloat16=bfloat16,
            distillation=distillation,
            policy_episodes=policy_episodes,
        )
        self.layers = self.compressor.infos
        self.teacher_bytes = len(task.teacher_file())
        self.layer_costs = LayerCosts(self.compressor.student, self.choices, self.teacher_bytes, latency_table)
        if reward == "latency" and self.layer_costs.table is None:
            raise InputError("The reward 'latency' needs a table: give the file of hsq latency (--latency-table).")
        self.sizes, self.fixed_bytes = self.layer_costs.sizes, self.layer_costs.fixed_bytes
        self.costs, self.budgets = self.layer_costs.budgets(target_ratio, target_latency)
        self.target_ratio = next(iter(self.budgets))
        if sensitivities is None:
            sensitivities = sensitivity(task, self.layers, self.choices, activation_bits, sparsity_pattern)
        self.sensitivities, self.observe_repaired = sensitivities, observe_repaired
        self._repaired: NDArray[np.float64] | None = None
        shown = [self.sensitivities, *([self.repaired_sensitivities] if observe_repaired else [])]
        self._static = static_features(self.layers, teacher_weights(task.teacher, self.layers), *shown)
        self.action_space = self.actions.space
        actions = len(self._shown_mask())
        self.observation_names = observation_names(self.choices, observe_repaired, actions)
        self.observation_space = spaces.Box(0.0, 1.0, (len(self.observation_names),), np.float32)
        self._steps = self._visited_steps = 0

    @property
    def budget(self) -> Budget:
        """The present episode's."""
        return self.budgets[self.target_ratio]

    @property
    def repaired_sensitivities(self) -> NDArray[np.float64]:
        """(layers, choices) after the repair that a step makes; measured on first use and kept on disk."""
        if self._repaired is None:
            self._repaired = repaired_sensitivity(self.compressor, self.choices, self.alpha)
        return self._repaired

    @property
    def index(self) -> int:
        """The layer to come, from 0; the number of layers once the episode has ended."""
        return len(self._executed)

    @property
    def student(self) -> Student:
        """The student as the choices so far left it."""
        return self.compressor.student

    @property
    def spent_bytes(self) -> int:
        """Bytes of the decided layers."""
        return int(sum(self.sizes[layer, choice] for layer, choice in enumerate(self._executed)))

    @property
    def bounded(self) -> bool:
        """Whether the present episode has a budget, of bytes or of time."""
        return math.isfinite(self.budget.limit)

    @property
    def spent(self) -> int:
        """What the decided layers take of the budget: bytes, or nanoseconds where these are bounded."""
        return int(sum(self.costs[layer, choice] for layer, choice in enumerate(self._executed)))

    @property
    def ratio(self) -> float:
        """Teacher file over student file, undecided layers counted in float32."""
        return self.teacher_bytes / (
            self.spent_bytes + sum(self.layer_costs.float_sizes[self.index :]) + self.fixed_bytes
        )

    @property
    def steps_taken(self) -> tuple[int, int]:
        """Steps since this environment or fork was made, and how many of them the table answered."""
        return self._steps, self._visited_steps

    @property
    def evaluations(self) -> int:
        """Students that were measured since this environment or fork was made."""
        return self._steps - self._visited_steps

    @property
    def accuracy(self) -> float:
        """Of the student as the choices so far left it, see ``hsq_env.accuracy``."""
        return self._accuracy

    def allowed(self) -> NDArray[np.bool_]:
        """Which choices of the layer to come the budget allows, (choices,); all, once the episode has ended."""
        if self.index == len(self.layers):
            return np.ones(len(self.choices), dtype=bool)
        return self.budget.mask(self.index, self.spent)

    def action_masks(self) -> NDArray[np.bool_]:
        """The same in the form that sb3-contrib expects of the action space."""
        return self.actions.mask(self.allowed())

    def would_measure(self, action: Any) -> bool:
        """Whether this action's step would compute something, in place of finding it in the table."""
        choice, alpha = self.choices[self._decode(action)], self._alpha_of(action)
        return not self.compressor.has_visited(choice, alpha)

    def is_known(self, action: Any) -> bool:
        """Whether this action's step was measured before, here or by those with whom outcomes are shared."""
        return self.compressor.is_known(self.choices[self._decode(action)], self._alpha_of(action))

    def plan(self) -> Plan:
        """The choices of a finished episode."""
        if self.index < len(self.layers):
            raise InputError(
                f"The episode has decided {self.index} of {len(self.layers)} layers: finish it for a plan."
            )
        return Plan(tuple(i.name for i in self.layers), tuple(self.choices_so_far()))

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Decide one layer; see the class."""
        if self.index == len(self.layers):
            raise gym.error.ResetNeeded("The episode has ended: call reset() before step().")
        executed = self._decode(action)
        choice, alpha = self.choices[executed], self._alpha_of(action)
        measured = self._look_up(choice, alpha)
        if measured is None:
            self.compressor.compress(choice)
            finite = self.compressor.finetune(alpha)
            measured = self.compressor.measure(choice, alpha, finite)
        outcome = self._record(executed, measured)
        terms = reward_terms(self.reward, outcome, self.beta)
        info = self._step_info(self._executed_action(action, executed), outcome, terms)
        return self._observation(), float(sum(terms.values())), outcome.last, False, info

    def _decode(self, action: Any) -> int:
        """The index of the choice to execute: the asked one, or the nearest that can still meet the budget."""
        return nearest_allowed(self.actions.decode(action), self.choices, self.allowed())

    def _alpha_of(self, action: Any) -> float:
        """The share of the task loss in a step's fine-tuning: the action's, or the environment's."""
        asked = self.actions.alpha(action)
        return self.alpha if asked is None else asked

    def _executed_action(self, action: Any, executed: int) -> Any:
        asked = self.actions.decode(action) == executed
        return self.actions.own(action) if asked else self.actions.encode(executed, self.actions.alpha(action))

    def _look_up(self, choice: Choice, alpha: float) -> Outcome | None:
        """What the same choices led to before: here, which costs nothing, or where others have measured them."""
        visited = self.compressor.revisit(choice, alpha)
        self._steps, self._visited_steps = self._steps + 1, self._visited_steps + (visited is not None)
        return self.compressor.adopt(choice, alpha) if visited is None else visited

    def _step_info(self, executed_action: Any, outcome: StepOutcome, terms: dict[str, float]) -> dict[str, Any]:
        return {
            "executed_action": executed_action,
            "reward_terms": terms,
            "accuracy": outcome.accuracy,
            "divergence": self._divergence,
            "diverged": outcome.diverged,
            "ratio": self.ratio,
            **({"plan": self.plan()} if outcome.last else {}),
            **self._state_info(),
        }

    def _record(self, executed: int, measured: Outcome) -> StepOutcome:
        """Note the choice as made, and what came of it."""
        layer = self.index
        self._executed.append(executed)
        self._accuracy = 0.0 if math.isnan(measured.accuracy) else measured.accuracy
        before = self._divergence
        self._divergence = measured.divergence if math.isfinite(measured.divergence) else before
        costs = self.layer_costs
        return StepOutcome(
            accuracy=self._accuracy,
            choice=self.choices[executed],
            layer_share=float(self.sizes[layer, executed]) / costs.float_sizes[layer],
            model_share=costs.model_share(layer),
            last=self.index == len(self.layers),
            student_share=1 / self.ratio,
            operations_share=float(costs.operation_shares[layer, executed]),
            latency_share=float(costs.latency_shares[layer, executed]),
            harm=math.log1p(self._divergence) - math.log1p(before),
            diverged=not measured.finite or math.isnan(measured.accuracy),
        )

    def _observation(self) -> Observation:
        at = min(self.index, len(self.layers) - 1)  # the terminal observation shows the last layer again
        floats = self.layer_costs.float_sizes
        decided, total = sum(floats[: self.index]), sum(floats)
        progress = Progress(
            accuracy=self._accuracy,
            divergence=self._divergence,
            size_so_far=self.spent_bytes / decided if decided else 1.0,
            weights_left=1 - decided / total,
            budget_slack=self.budget.slack(self.index, self.spent) if self.index < len(self.layers) else 0.0,
            target=self.budget.share,
            last=self.choices[self._executed[-1]] if self._executed else None,
            alpha=self.alpha,
            beta=self.beta,
        )
        return observation(self._static, at, progress, self._shown_mask())

    def _shown_mask(self) -> NDArray[np.bool_]:
        return self.action_masks() if isinstance(self.action_space, spaces.Discrete) else self.allowed()

    def _state_info(self) -> dict[str, Any]:
        layer = self.layers[self.index].name if self.index < len(self.layers) else None
        return {"action_mask": self.allowed(), "layer": layer, "target_ratio": self.target_ratio}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start over from the teacher.

        :param options: `alpha` and `beta` for this and the following episodes, `target_ratio` for this one
        """
        given, targets = dict(options or {}), list(self.budgets)
        for name in given:
            check_known("reset option", name, ("alpha", "beta", "target_ratio"))
        if "target_ratio" in given:
            check_known("target ratio", given["target_ratio"], targets)
        target = given.pop("target_ratio", None)
        self.set_weights(**{"alpha": self.alpha, "beta": self.beta, **given})
        super().reset(seed=seed)
        if target is None and len(targets) > 1:
            target = targets[int(self.np_random.integers(len(targets)))]
        self.target_ratio = targets[0] if target is None else target
        self.compressor.reset()
        self._executed, self._accuracy, self._divergence = [], 1.0, 0.0
        return self._observation(), self._state_info()

    def set_weights(self, alpha: float, beta: float) -> None:
        """Share of the task loss and weight of accuracy for the episodes to come.

        Meant to be called between episodes: in one, it counts from the next step on.
        """
        for name, value in (("alpha", alpha), ("beta", beta)):
            check_share(name, value)
        self.alpha, self.beta = float(alpha), float(beta)

    def fork(self) -> "HSQEnv":
        """An independent copy at the same place in the episode.

        What no step changes is shared (task, teacher's outputs, kept states, sensitivities), and so is the table of
        visited prefixes, so that a tree search pays for every prefix once.
        """
        other = copy.copy(self)
        other.compressor = self.compressor.fork()
        other._executed, other._steps, other._visited_steps = list(self._executed), 0, 0
        other.action_space = copy.deepcopy(self.action_space)  # each samples on its own
        other.observation_space = copy.deepcopy(self.observation_space)
        other._np_random = copy.deepcopy(self._np_random)
        return other

    def get_state(self) -> EnvState:
        """Where the episode stands, in a small record that can be pickled and given to any equal environment."""
        return EnvState(
            tuple(self._executed),
            tuple(decision.alpha for decision in self.compressor.node.decisions()),
            self._accuracy,
            self._divergence,
            self.alpha,
            self.beta,
            self.target_ratio,
            self.compressor.policy.state() if self.compressor.policy is not None else None,
        )

    def set_state(self, state: EnvState) -> tuple[Observation, dict[str, Any]]:
        """Go to where ``get_state`` was called, forwards or backwards.

        :return: the observation and the information of the layer to come, as from ``reset``
        :raises InputError: if the record belongs to another problem
        """
        check_known("target ratio", state.target_ratio, list(self.budgets))
        if len(state.executed) > len(self.layers) or not all(0 <= i < len(self.choices) for i in state.executed):
            raise InputError(
                f"This state has {len(state.executed)} decisions that do not fit {len(self.layers)} layers with "
                f"{len(self.choices)} choices each: give a state of an environment with the same settings."
            )
        spent = sum(int(self.costs[layer, choice]) for layer, choice in enumerate(state.executed))
        budget, at = self.budgets[state.target_ratio], len(state.executed)
        if not (budget.mask(at, spent).any() if at < len(self.layers) else spent <= budget.limit):
            raise InputError("This state has spent more than the budget allows: give one of an equal environment.")
        made = [Decision(self.choices[i], a) for i, a in zip(state.executed, state.alphas, strict=True)]
        self.compressor.load_policy(state.policy)
        self.compressor.go_to(made)
        self._executed, self._accuracy = list(state.executed), state.accuracy
        self._divergence, self.target_ratio = state.divergence, state.target_ratio
        self.alpha, self.beta = state.alpha, state.beta
        return self._observation(), self._state_info()

    def share(self, outcomes: Outcomes) -> None:
        """Look up there what others have measured, and tell of what is measured here; no reward changes.

        A step that others have measured counts as an evaluation, so that a search does the same with and without them.
        """
        self.compressor.share(outcomes, problem(self).encode())

    def choices_so_far(self) -> list[Choice]:
        """The choices of the decided layers."""
        return [self.choices[i] for i in self._executed]

    def render(self) -> Any:
        """ "ansi": a table of layers and choices; "rgb_array": bits and sparsity per layer as bars."""
        if self.render_mode is None:
            gym.logger.warn('render() needs a mode: gym.make(..., render_mode="ansi") or "rgb_array".')
            return None
        if self.render_mode == "ansi":
            return render_ansi(self.layers, self.choices_so_far(), self._accuracy, self.ratio)
        return render_bars(len(self.layers), self.choices_so_far())
