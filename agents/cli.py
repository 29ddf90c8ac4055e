"""The ``hsq`` command. Bad input ends in one sentence and exit code 2, Ctrl-C in exit code 130."""

import errno
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

import hsq_env  # noqa: F401 - sets OMP_WAIT_POLICY before torch loads
from detectors.errors import InputError

EXIT_MISSED, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 1, 2, 130


def search(
    out: Path,
    dataset: str | None = None,
    detector: str | None = None,
    teacher: Path | None = None,
    splits: tuple[str, ...] | None = None,
    algo: str = "dqn",
    episodes: int | None = None,
    evaluations: int | None = None,
    time_budget: float | None = None,
    target_ratio: float = 8.0,
    pareto: tuple[float, ...] | None = None,
    target_accuracy: float | None = None,
    seed: int = 0,
    finetune_steps: int = 300,
    finalists: int = 2,
    step_minibatches: int = 2,
    workers: int = 1,
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
    sparsity_pattern: Literal["unstructured", "n:m"] = "unstructured",
    distillation: Literal["akd", "spark", "akd+spark"] = "akd",
    patch: int = 48,
    bfloat16: bool = False,
) -> None:
    """Find a small version of a trained detector or restorer.

    Writes OUT/result.json, plan.json, model.hsq, policy.zip, teacher.safetensors, baselines/ and TensorBoard logs.

    Example: hsq search --dataset photos/ --teacher photos.safetensors --target-ratio 10 --out runs/photos

    :param out: a new or empty folder
    :param dataset: "shapes" or a COCO-layout folder for a detector, "photos" or a folder of images for a restorer; by
        default the embedded data of the teacher's kind
    :param detector: name that the teacher must have; any if not given; the restorers dncnn and edsr ship with one
    :param teacher: a detector's, written by 'hsq teacher', or a restorer's; the shipped detector if not given
    :param splits: names of the training, the search and, if there is one, the test split; by default the usual ones
    :param algo: an agent: dqn, qrdqn, maskable_ppo, ppo, sac, td3, ddpg; a baseline: uniform, random, greedy, ilp,
        ilp_repaired, ilp_loads, tpe, nsga2, local; or module:factory of your own
    :param episodes: each decides every layer once; the paper uses 1000; 5 if nothing limits the search
    :param evaluations: students that may be measured in the search, one for each new step
    :param time_budget: seconds of the agent's training, whichever ends first
    :param target_ratio: teacher bytes over student bytes
    :param pareto: several target ratios for a plan each from one training, in place of one
    :param target_accuracy: the metric over the teacher's; with it the target ratio is no hard limit but, like this, an
        aim that the self-evaluation loop approaches by tuning alpha and beta between windows of episodes
    :param seed: of the agent and of the long fine-tuning
    :param finetune_steps: gradient steps for each finalist and each uniform plan after the search
    :param finalists: plans that are fine-tuned; the best on the search split wins
    :param step_minibatches: gradient steps of the brief fine-tuning in each step of the environment
    :param workers: environments side by side, each in a process of its own with one thread
    :param warm_start: baselines whose plans the agent starts from; ilp_repaired and ilp_loads measure every choice once
        with a repair, which takes 3 minutes on the embedded task and an hour at full width on one core
    :param return_to_best: episodes follow the best plan so far up to a random layer, which costs nothing
    :param surrogate: between episodes, practise in a learned model of damages and try what it proposes
    :param table_megabytes: memory of each worker for plans' beginnings that were measured before
    :param search_images: images that rewards look at
    :param pool_images: training images that the brief fine-tuning takes its minibatches from
    :param calibration_images: training images for activation ranges and sensitivities
    :param reward: divergence, paper, paper-literal, size or terminal
    :param alpha: share of the ground-truth loss in the steps' fine-tuning
    :param beta: weight of accuracy in the reward; 1 if not given, since the target ratio bounds the size already
    :param observe_repaired: show agents what is left of each choice's damage after a repair
    :param activation_bits: of every layer's input; None for float32
    :param sparsity_pattern: N:M patterns need fewer bytes for which weights are zero
    :param distillation: akd; akd+spark, in which a policy weighs its places; spark, the same without a task loss
    :param patch: side of a restorer's patches in the restored image, in pixels
    :param bfloat16: fine-tune in bfloat16: twice as fast on processors with AMX and on GPUs, for full-width detectors
    """
    from agents.find import Explorer
    from agents.report import print_table
    from agents.run_folder import check_new_folder
    from agents.search import search as run_search
    from hsq_env.make import make_task

    check_new_folder(out)
    task = make_task(
        dataset,
        teacher,
        splits,
        detector,
        patch,
        search_images=search_images,
        pool_images=pool_images,
        calibration_images=calibration_images,
        seed=seed,
    )
    result = run_search(
        task,
        out,
        Explorer(
            algo,
            seed,
            5 if episodes is None and evaluations is None and time_budget is None else episodes,
            evaluations,
            time_budget,
            workers,
            warm_start,
            return_to_best,
            surrogate,
        ),
        target_ratio=pareto or target_ratio,
        target_accuracy=target_accuracy,
        finetune_steps=finetune_steps,
        finalists=finalists,
        model=task.spec.name,
        distillation=distillation,
        step_minibatches=step_minibatches,
        table_megabytes=table_megabytes,
        reward=reward,
        alpha=alpha,
        beta=beta,
        observe_repaired=observe_repaired,
        activation_bits=activation_bits,
        sparsity_pattern=sparsity_pattern,
        bfloat16=bfloat16,
    )
    print_table(result, out)


def monitor(
    run: Annotated[Path, tyro.conf.Positional],
    dataset: str | None = None,
    target_accuracy: float | None = None,
    splits: tuple[str, ...] | None = None,
    retrain: bool = False,
    out: Path | None = None,
    episodes: int = 5,
    evaluations: int | None = None,
    finetune_steps: int = 300,
) -> None:
    """Measure a finished model on new images and, if asked to, search again from the old policy and replay.

    Exit code 0 if the target is met or a new search has ended, 1 if the target is missed.

    Example: hsq monitor runs/photos --dataset new_photos/ --retrain --out runs/new_photos

    :param run: folder of a finished search
    :param dataset: new data of the run's kind, whose test split is measured; the embedded data if not given
    :param target_accuracy: the metric over the teacher's; by default what the run measured less 0.01
    :param splits: names of the training, the search and, if there is one, the test split; by default the usual ones
    :param retrain: search again on the new data if the target is missed
    :param out: a new or empty folder for that search
    :param episodes: of that search
    :param evaluations: students that it may measure
    :param finetune_steps: gradient steps after it
    """
    from agents.find import Explorer
    from agents.monitor import explorer_from, read_run
    from agents.monitor import monitor as measure
    from agents.report import print_table
    from agents.run_folder import check_new_folder
    from agents.search import search as run_search

    if retrain:
        if out is None:
            raise InputError("--retrain needs a folder for the new search: give --out FOLDER.")
        check_new_folder(out)
        explorer = explorer_from(run, Explorer(episodes=episodes, evaluations=evaluations))
    verdict, task = measure(run, dataset, target_accuracy, splits)
    print(verdict.sentence(task.name))
    if verdict.meets:
        return
    if not retrain or out is None:
        raise SystemExit(EXIT_MISSED)
    settings = {key: value for key, value in read_run(run).items() if key in ("target_ratio", "reward", "beta")}
    result = run_search(task, out, explorer, finetune_steps=finetune_steps, model=task.spec.name, **settings)
    print_table(result, out)


def evaluate(
    file: Annotated[Path, tyro.conf.Positional],
    dataset: str | None = None,
    split: Literal["search", "test"] = "test",
    splits: tuple[str, ...] | None = None,
    json: bool = False,
) -> None:
    """Measure bytes and mAP or PSNR of a .hsq file again.

    :param file: model.hsq of a search
    :param dataset: data of the model's kind; the embedded data if not given
    :param split: "test", or "search" for the whole split that rewards come from
    :param splits: names of the training, the search and, if there is one, the test split; by default the usual ones
    :param json: print JSON
    """
    from agents.report import evaluate_file, print_evaluation

    print_evaluation(evaluate_file(file, dataset, split, splits), as_json=json)


def info(file: Annotated[Path, tyro.conf.Positional], json: bool = False) -> None:
    """Print the plan of a .hsq file.

    :param file: model.hsq of a search
    :param json: print JSON
    """
    from agents.report import print_info

    print_info(file, as_json=json)


def teacher(
    out: Path,
    dataset: str | None = None,
    detector: str | None = None,
    splits: tuple[str, ...] | None = None,
    epochs: int = 24,
    cycles: int = 2,
    batch_size: int = 16,
    learning_rate: float = 2e-3,
    image_size: int | None = None,
    level_scale: float | None = None,
    score_thresh: float = 0.1,
    train_images: int = 8000,
    vertical_flip: bool = False,
    bfloat16: bool = False,
    half: bool = False,
    evaluate_every: int = 1,
    restorer: Literal["dncnn", "edsr", "srresnet"] | None = None,
    noise: float = 25.0,
    scale: Literal[2, 4] = 2,
    channels: Literal[1, 3] = 3,
    patch: int = 48,
    steps_per_epoch: int = 100,
    seed: int = 0,
) -> None:
    """Train a teacher from random weights; called again, an interrupted training goes on.

    Example: hsq teacher --dataset photos/ --image-size 160 --epochs 45 --cycles 1 --batch-size 8 --out t.safetensors
    Example: hsq teacher --restorer dncnn --noise 25 --channels 1 --epochs 40 --out dncnn.safetensors

    :param out: the file to write, FP32 safetensors with batch norm folded
    :param dataset: "shapes", or a COCO-layout folder; for a restorer "photos", or a folder of images
    :param detector: fcos_resnet50 or fcos_resnet50_quarter (the default for "shapes")
    :param splits: names of the training, the search and, if there is one, the test split; by default the usual ones
    :param epochs: passes over the training split
    :param cycles: rises and falls of the learning rate, each half as high as the one before
    :param batch_size: images per step
    :param learning_rate: the peak of the one-cycle schedule
    :param image_size: pixels of the shorter side; 128 for "shapes", else 800
    :param level_scale: object sizes per pyramid level over those that suit 800-pixel images; by default the power of
        two nearest to 1.5 times image size over 800
    :param score_thresh: detections below are dropped; lower ones cost time and hardly change mAP
    :param train_images: how many "shapes" to draw for training
    :param vertical_flip: augment with vertical flips too
    :param bfloat16: convolutions in bfloat16: twice as fast on processors with AMX and on GPUs
    :param half: write float16 weights
    :param evaluate_every: epochs between measurements on the search split
    :param restorer: a restorer in place of a detector, with epochs, batch size, learning rate from above
    :param noise: that a restorer removes (dncnn): standard deviation, of 255
    :param scale: by which a restorer enlarges (edsr, srresnet)
    :param channels: of a restorer's images, 1 for grey
    :param patch: side of a restorer's patches in the restored image, in pixels
    :param steps_per_epoch: of a restorer, whose patches are drawn at random
    :param seed: of weights and order
    """
    from agents.report import train_restorer_file, train_teacher_file

    if restorer is not None:
        train_restorer_file(
            out,
            dataset,
            restorer,
            noise,
            scale,
            channels,
            patch,
            splits,
            epochs=epochs,
            steps_per_epoch=steps_per_epoch,
            batch_size=batch_size,
            learning_rate=learning_rate,
            bfloat16=bfloat16,
            half=half,
            seed=seed,
        )
        return
    dataset = dataset or "shapes"
    default = "fcos_resnet50_quarter" if dataset == "shapes" else "fcos_resnet50"
    train_teacher_file(
        out,
        dataset,
        detector or default,
        image_size=image_size or (128 if dataset == "shapes" else 800),
        level_scale=level_scale,
        score_thresh=score_thresh,
        train_images=train_images,
        splits=splits,
        epochs=epochs,
        cycles=cycles,
        batch_size=batch_size,
        learning_rate=learning_rate,
        vertical_flip=vertical_flip,
        bfloat16=bfloat16,
        half=half,
        evaluate_every=evaluate_every,
        seed=seed,
    )


def finetune(
    out: Path,
    plan: str,
    teacher: Path | None = None,
    network: str | None = None,
    dataset: str | None = None,
    splits: tuple[str, ...] | None = None,
    distillation: Literal["none", "akd", "spark", "wavelet", "attention"] = "spark",
    steps: int = 300,
    alpha: float | None = None,
    activation_bits: int | None = 8,
    sparsity_pattern: Literal["unstructured", "n:m"] = "unstructured",
    rounding: Literal["nearest", "compensated"] | None = None,
    policy: Path | None = None,
    policy_every: int = 4,
    batch_size: int = 8,
    patch: int = 48,
    seed: int = 0,
    bfloat16: bool = False,
) -> None:
    """Quantize a teacher as a plan says and train it, without a search.

    Writes OUT/model.hsq, plan.json, teacher.safetensors, result.json and, for SPARK, spark.pt.

    Example: hsq finetune --plan uniform4 --distillation spark --steps 300 --out runs/uniform4

    :param out: a new or empty folder
    :param plan: uniform8, uniform4, uniform2, or the plan.json of a search
    :param teacher: a detector's or a restorer's; the shipped detector if not given
    :param network: name that the teacher must have; dncnn and edsr ship with one
    :param dataset: "shapes" or a COCO-layout folder for a detector, "photos" or a folder of images for a restorer
    :param splits: names of the training, the search and the test split; by default the usual ones
    :param distillation: none (the ground truth alone), akd (all places alike), spark (a policy weighs them), wavelet
        (fine structure alone, for restorers), attention (where features are active, for detectors)
    :param steps: gradient steps; 0 for post-training quantization
    :param alpha: share of the ground-truth loss; 1 for none, else 0.3 if not given
    :param activation_bits: of every layer's input; None for float32
    :param sparsity_pattern: N:M patterns need fewer bytes for which weights are zero
    :param rounding: nearest codes, or codes that make good on training images what others spoil; by default compensated
        for restorers, nearest for detectors
    :param policy: spark.pt of another run, to go on from
    :param policy_every: steps between two lessons of SPARK's policy, each of which costs a forward pass
    :param batch_size: images per step
    :param patch: side of a restorer's training patches in the restored image, in pixels
    :param seed: of the batches and of the policy
    :param bfloat16: train in bfloat16: twice as fast on processors with AMX and on GPUs
    """
    from agents.finetune import finetune as run
    from agents.run_folder import check_new_folder
    from hsq_env.make import make_task

    check_new_folder(out)
    task = make_task(dataset, teacher, splits, network, patch, batch_size=batch_size, seed=seed)
    run(
        task,
        out,
        plan,
        distillation,
        steps,
        alpha,
        activation_bits,
        sparsity_pattern,
        rounding,
        policy,
        policy_every,
        seed,
        bfloat16,
        say=print,
    )


def shapes(out: Path, train: int = 1024, val: int = 128, test: int = 400, seed: int = 0) -> None:
    """Write the generated shapes data as a COCO-layout folder.

    :param out: a folder that does not exist yet
    :param train: images
    :param val: images of the search split
    :param test: images
    :param seed: of all pictures
    """
    from detectors.shapes import write_shapes

    print(f"wrote {write_shapes(out, {'train': train, 'val': val, 'test': test}, seed)}")


COMMANDS: dict[str, Any] = {
    "search": search,
    "monitor": monitor,
    "evaluate": evaluate,
    "info": info,
    "finetune": finetune,
    "teacher": teacher,
    "shapes": shapes,
}


def main(arguments: list[str] | None = None) -> None:
    """Run the command and turn expected failures into a sentence and an exit code."""
    try:
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS, prog="hsq", description="Make a trained detector or restorer small.", args=arguments
        )
    except InputError as error:
        _fail(str(error), EXIT_BAD_INPUT)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EACCES, errno.EPERM, errno.EROFS, errno.EDQUOT, errno.EFBIG):
            raise
        remedy = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "choose another place"
        _fail(
            f"Cannot write {error.filename or 'the output'} ({error.strerror}): {remedy} and try again.", EXIT_BAD_INPUT
        )
    except KeyboardInterrupt as error:
        _fail(str(error) or "Interrupted.", EXIT_INTERRUPTED)


def _fail(sentence: str, code: int) -> None:
    print(f"hsq: {sentence}", file=sys.stderr)
    raise SystemExit(code)


if __name__ == "__main__":
    main()
