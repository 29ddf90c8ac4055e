"""``hsq search``."""

import inspect
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

from detectors.errors import InputError

SHAPES, PHOTOS = "shapes", "photos"  # data that comes with the packages, whose modules take long to import

OnEpisode = Callable[[Any, float], object]  # an ``Episode``, and its score
DEFAULT_RATIO, DEFAULT_EPISODES = 8.0, 5
PASSED_ON = (  # to ``agents.search.search`` under the same name
    "target_accuracy",
    "finetune_steps",
    "finalists",
    "distillation",
    "step_minibatches",
    "table_megabytes",
    "latency_table",
    "target_latency",
    "reward",
    "alpha",
    "beta",
    "observe_repaired",
    "activation_bits",
    "sparsity_pattern",
    "bfloat16",
    "checkpoint_minutes",
    "trust_checkpoints",
    "track",
)


def no_one(episode: Any, score: float) -> None:
    """Nobody is told."""


def search(
    out: Path | None = None,
    resume: Path | None = None,
    dataset: str | None = None,
    detector: str | None = None,
    teacher: Path | None = None,
    splits: tuple[str, ...] | None = None,
    algo: str = "dqn",
    continue_from: Path | None = None,
    episodes: int | None = None,
    evaluations: int | None = None,
    time_budget: float | None = None,
    target_ratio: float | None = None,
    pareto: tuple[float, ...] | None = None,
    target_accuracy: float | None = None,
    latency_table: Path | None = None,
    target_latency: float | None = None,
    seed: int = 0,
    finetune_steps: int = 300,
    finalists: int = 2,
    step_minibatches: int = 2,
    workers: int = 1,
    ray: str | None = None,
    gpus_per_worker: float = 0.0,
    warm_start: tuple[str, ...] = ("ilp_loads",),
    return_to_best: bool = True,
    surrogate: bool = True,
    table_megabytes: float = 128.0,
    search_images: int = 64,
    pool_images: int = 64,
    calibration_images: int = 16,
    reward: str = "divergence",
    alpha: float = 0.0,
    beta: float | None = None,
    observe_repaired: bool = False,
    activation_bits: int | None = 8,
    sparsity_pattern: Literal["unstructured", "n:m", "channels"] = "unstructured",
    distillation: Literal["akd", "spark", "akd+spark"] = "akd",
    patch: int = 48,
    bfloat16: bool = False,
    checkpoint_minutes: float = 5.0,
    trust_checkpoints: bool = False,
    json: bool = False,
    track: Literal["tensorboard", "wandb", "mlflow"] = "tensorboard",
) -> None:
    """Find a small version of a trained detector or restorer.

    Writes OUT/result.json, plan.json, model.hsq, policy.zip, teacher.safetensors, baselines/ and TensorBoard logs.

    Example: hsq search --dataset photos/ --teacher photos.safetensors --target-ratio 10 --out runs/photos
    Example: hsq search --resume runs/photos

    :param out: a new or empty folder
    :param resume: the folder of a search that was interrupted or killed, which goes on with what it was begun with;
        takes no other flag but --trust-checkpoints and --json
    :param dataset: "shapes" or a COCO-layout folder for a detector, "photos" or a folder of images for a restorer; by
        default the embedded data of the teacher's kind
    :param detector: name that the teacher must have; any if not given; the restorers dncnn and edsr ship with one; a
        detector of torchvision's (fcos_resnet50_fpn and those of hsq teacher --help) without --teacher has its COCO
        weights downloaded
    :param teacher: a detector's, written by 'hsq teacher', torchvision's COCO weights of --detector (.pth), or a
        restorer's; the shipped detector if not given
    :param splits: names of the training, the search and, if there is one, the test split; by default the usual ones
    :param algo: an agent: dqn, qrdqn, maskable_ppo, ppo, sac, td3, ddpg, haq, amc; a baseline: uniform, random, greedy,
        ilp, ilp_repaired, ilp_loads, tpe, nsga2, local, planner; or module:factory of your own
    :param continue_from: a finished run for one target, whose agent goes on searching with its policy and its replay
    :param episodes: of the agent, which come after the plans that it starts from; each decides every layer once; the
        paper uses 1000; 5 if nothing limits the search
    :param evaluations: students that may be measured in the search, one for each new step
    :param time_budget: seconds of the agent's training, whichever ends first
    :param target_ratio: teacher bytes over student bytes; 8 if nothing else bounds the search
    :param pareto: several target ratios for a plan each from one training, in place of one
    :param target_accuracy: the metric over the teacher's (of restorers: gains in PSNR over the images as they come);
        with it the target ratio is no hard limit but, like this, an aim that the self-evaluation loop approaches by
        tuning alpha and beta between windows of episodes
    :param latency_table: of 'hsq latency', for the reward latency and for --target-latency
    :param target_latency: milliseconds that all layers may take by that table, in place of a target ratio
    :param seed: of the agent and of the long fine-tuning
    :param finetune_steps: gradient steps for each finalist and each uniform plan after the search
    :param finalists: plans that are fine-tuned at length; the best on the search split wins
    :param step_minibatches: gradient steps of the brief fine-tuning in each step of the environment
    :param workers: environments side by side, each in a process of its own with one thread
    :param ray: spread the workers over a Ray cluster: its address (host:6379, ray://host:10001), "auto" for the one of
        this machine, "local" for none but this machine's own processes; needs pip install -e '.[ray]'
    :param gpus_per_worker: share of a GPU that each of them takes
    :param warm_start: baselines whose plans the agent starts from; ilp_repaired and ilp_loads measure every choice once
        with a repair, which takes 3 minutes on the embedded task and an hour at full width on one core
    :param return_to_best: episodes follow the best plan so far up to a random layer, which costs nothing
    :param surrogate: between episodes, practise in a learned model of damages and try what it proposes
    :param table_megabytes: memory of each worker for plans' beginnings that were measured before
    :param search_images: images that rewards look at
    :param pool_images: training images that the brief fine-tuning takes its minibatches from
    :param calibration_images: training images for activation ranges and sensitivities
    :param reward: divergence, paper, paper-literal, size, energy, latency or terminal
    :param alpha: share of the ground-truth loss in the steps' fine-tuning
    :param beta: weight of accuracy in the reward; if not given 1 where a target bounds what the reward charges, else
        0.95
    :param observe_repaired: show agents what is left of each choice's damage after a repair
    :param activation_bits: of every layer's input but the picture, which keeps 8; None for float32
    :param sparsity_pattern: N:M patterns need fewer bytes for which weights are zero; channels drops whole input
        channels, which makes networks faster too
    :param distillation: akd; akd+spark, in which a policy weighs its places; spark, the same without a task loss
    :param patch: side of a restorer's patches in the restored image, in pixels
    :param bfloat16: fine-tune in bfloat16: twice as fast on GPUs and many processors (hsq doctor), for full-width
        detectors
    :param checkpoint_minutes: between two checkpoints, from which --resume goes on
    :param trust_checkpoints: resume from checkpoints that another user or machine wrote, which can run any code
    :param json: print what OUT/result.json holds in place of the table; all else goes to standard error
    :param track: where settings, episodes, the training and the table go as well: wandb (its files in OUT/wandb;
        WANDB_MODE=offline keeps them there) or mlflow (MLFLOW_TRACKING_URI, or mlflow.db in the present folder); needs
        pip install -e '.[wandb]' or '.[mlflow]'. TensorBoard's files are always written
    """
    arguments = dict(locals())

    from agents.output import aside
    from agents.tables import print_table

    folder = out if resume is None else resume
    if folder is None:
        raise InputError("A search needs a folder to write: give --out, or --resume to go on with one.")
    with aside(json):
        result = begin(arguments, folder) if resume is None else _resume(resume, arguments)
    print_table(result, folder, as_json=json)


def begin(arguments: dict[str, Any], out: Path, on_episode: OnEpisode = no_one) -> dict[str, Any]:
    """Search with arguments of the command, the usual ones where some are missing.

    :param out: a new or empty folder
    :param on_episode: see ``agents.search.search``
    :return: the content of ``result.json``
    """
    return _run({**_defaults(), **arguments}, out, on_episode=on_episode)


def resume_run(run: Path, on_episode: OnEpisode = no_one) -> dict[str, Any]:
    """``hsq search --resume``."""
    return _resume(run, _defaults(), on_episode)


def _resume(run: Path, given: dict[str, Any], on_episode: OnEpisode = no_one) -> dict[str, Any]:
    return _run(_begun_with(run, given), run, resumed=True, on_episode=on_episode)


def _defaults() -> dict[str, Any]:
    return {name: parameter.default for name, parameter in inspect.signature(search).parameters.items()}


def _begun_with(run: Path, given: dict[str, Any]) -> dict[str, Any]:
    """The arguments that an interrupted search was begun with; its teacher is the copy that it made.

    :param given: those of the command
    :raises InputError: if there is no such search, or if another flag was given
    """
    from agents.run_folder import read_settings

    defaults = _defaults()
    own = ("resume", "trust_checkpoints", "json")
    others = [name for name, value in given.items() if name not in own and value != defaults[name]]
    if others:
        flag = others[0].replace("_", "-")
        raise InputError(f"A search goes on with what it was begun with: leave out --{flag} beside --resume.")
    kept: dict[str, Any] = read_settings(run, given["trust_checkpoints"])["arguments"]
    if not kept or not set(kept) <= set(defaults):
        raise InputError(f"The search of {run} was not begun by this command: resume it as it was begun.")
    kept = {name: tuple(value) if isinstance(value, list) else value for name, value in kept.items()}
    trusted = {"trust_checkpoints": given["trust_checkpoints"]}
    return {**defaults, **kept, **trusted, "teacher": run / "teacher.safetensors"}


def _as_json(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments that can be read again from another working folder."""
    here = ("out", "resume", "trust_checkpoints", "json")
    kept = {name: value for name, value in arguments.items() if name not in here}
    for name in ("dataset", "teacher", "latency_table", "continue_from"):
        if kept[name] not in (None, SHAPES, PHOTOS) and Path(kept[name]).exists():
            kept[name] = str(Path(kept[name]).resolve())
    return kept


def _run(arguments: dict[str, Any], out: Path, resumed: bool = False, on_episode: OnEpisode = no_one) -> dict[str, Any]:
    """Search with the command's arguments."""
    from agents.explorer import Explorer
    from agents.run_folder import check_new_folder
    from agents.search import search as run_search
    from agents.workers import Cluster
    from hsq_env.make import make_task

    a = SimpleNamespace(**arguments)
    if not resumed:
        check_new_folder(out)
    if a.continue_from is not None and not resumed:  # a search that is resumed knows it
        from agents.monitor import agent_of_run

        a.algo = arguments["algo"] = agent_of_run(Path(a.continue_from), a.algo)
    if a.pareto and a.target_ratio is not None:
        raise InputError("--pareto names the ratios: leave out --target-ratio.")
    ratio = DEFAULT_RATIO if a.target_ratio is None and a.target_latency is None else a.target_ratio
    limited = not (a.episodes is None and a.evaluations is None and a.time_budget is None)
    settings = {name: arguments[name] for name in ("search_images", "pool_images", "calibration_images", "seed")}
    task = make_task(a.dataset, a.teacher, a.splits, a.detector, a.patch, **settings)
    explorer = Explorer(
        a.algo,
        a.seed,
        a.episodes if limited else DEFAULT_EPISODES,
        a.evaluations,
        a.time_budget,
        a.workers,
        a.warm_start,
        a.return_to_best,
        a.surrogate,
        cluster=None if a.ray is None else Cluster(a.ray, a.gpus_per_worker),
        continue_from=None if a.continue_from is None else Path(a.continue_from),
    )
    return run_search(
        task,
        out,
        explorer,
        target_ratio=a.pareto or ratio,
        model=task.spec.name,
        task_settings={"dataset": a.dataset, "splits": a.splits, "patch": a.patch, **settings},
        arguments=_as_json(arguments),
        resume=resumed,
        on_episode=on_episode,
        **{name: arguments[name] for name in PASSED_ON},
    )
