"""Commands that train without a search: ``hsq teacher``, ``finetune``; and for data: ``hsq shapes``, ``data``."""

from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from detectors.errors import InputError


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
    proposals: int | None = None,
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
    json: bool = False,
) -> None:
    """Train a teacher from random weights; called again, an interrupted training goes on.

    Example: hsq teacher --dataset photos/ --image-size 160 --epochs 45 --cycles 1 --batch-size 8 --out t.safetensors
    Example: hsq teacher --restorer dncnn --noise 25 --channels 1 --epochs 40 --out dncnn.safetensors

    :param out: the file to write, FP32 safetensors with batch norm folded
    :param dataset: "shapes", or a COCO-layout folder; for a restorer "photos", or a folder of images
    :param detector: fcos_resnet50 (the default), fcos_resnet50_quarter (the default for "shapes"), or a detector of
        torchvision's: retinanet_resnet50_fpn, fasterrcnn_resnet50_fpn, both also with _v2,
        fasterrcnn_mobilenet_v3_large_320_fpn, ssdlite320_mobilenet_v3_large
    :param splits: names of the training, the search and, if there is one, the test split; by default the usual ones
    :param epochs: passes over the training split
    :param cycles: rises and falls of the learning rate, each half as high as the one before
    :param batch_size: images per step
    :param learning_rate: the peak of the one-cycle schedule
    :param image_size: pixels of the shorter side; 128 for "shapes", else 800, or 320 for MobileNet's detectors
    :param level_scale: object sizes per pyramid level over those that suit 800-pixel images; by default the power of
        two nearest to 1.5 times image size over 800
    :param score_thresh: detections below are dropped; lower ones cost time and hardly change mAP
    :param proposals: boxes per image that the second stage of a Faster R-CNN classifies; torchvision's 1000, or 150 for
        MobileNet, if not given, of which small images need fewer; training looks at no more per image either
    :param train_images: how many "shapes" to draw for training
    :param vertical_flip: augment with vertical flips too
    :param bfloat16: convolutions in bfloat16: twice as fast on GPUs and many processors (hsq doctor)
    :param half: write float16 weights
    :param evaluate_every: epochs between measurements on the search split
    :param restorer: a restorer in place of a detector, with epochs, batch size, learning rate from above
    :param noise: that a restorer removes (dncnn): standard deviation, of 255
    :param scale: by which a restorer enlarges (edsr, srresnet)
    :param channels: of a restorer's images, 1 for grey
    :param patch: side of a restorer's patches in the restored image, in pixels
    :param steps_per_epoch: of a restorer, whose patches are drawn at random
    :param seed: of weights and order
    :param json: print {"file", "metric", "map" or "psnr" (on the search split), "epoch", "seconds"}; all else goes to
        standard error
    """
    from agents.output import aside
    from agents.tables import print_teacher
    from agents.teachers import train_restorer_file, train_teacher_file

    training: dict[str, Any] = {
        "splits": splits,
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "bfloat16": bfloat16,
        "half": half,
        "seed": seed,
    }
    with aside(json):
        if restorer is not None:
            if any(value is not None for value in (detector, image_size, level_scale, proposals)):
                raise InputError(
                    "--restorer trains a restorer: leave out --detector, --image-size, --level-scale and --proposals."
                )
            training["steps_per_epoch"] = steps_per_epoch
            best = train_restorer_file(out, dataset, restorer, noise, scale, channels, patch, **training)
        else:
            dataset = dataset or "shapes"
            default = "fcos_resnet50_quarter" if dataset == "shapes" else "fcos_resnet50"
            best = train_teacher_file(
                out,
                dataset,
                detector or default,
                image_size=image_size,
                level_scale=level_scale,
                score_thresh=score_thresh,
                train_images=train_images,
                proposals=proposals,
                cycles=cycles,
                vertical_flip=vertical_flip,
                evaluate_every=evaluate_every,
                **training,
            )
    print_teacher(best, as_json=json)


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
    sparsity_pattern: Literal["unstructured", "n:m", "channels"] = "unstructured",
    rounding: Literal["nearest", "compensated"] | None = None,
    policy: Path | None = None,
    policy_every: int = 5,
    batch_size: int = 8,
    patch: int = 48,
    seed: int = 0,
    bfloat16: bool = False,
    json: bool = False,
) -> None:
    """Quantize a teacher as a plan says and train it, without a search.

    Writes OUT/model.hsq, plan.json, teacher.safetensors, result.json and, for SPARK, spark.pt.

    Example: hsq finetune --plan uniform4 --distillation spark --steps 300 --out runs/uniform4
    Example: hsq finetune --plan runs/photos/plan.json --teacher photos.safetensors --dataset photos/ --out runs/again

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
    :param activation_bits: of every layer's input but the picture, which keeps 8; None for float32
    :param sparsity_pattern: N:M patterns need fewer bytes for which weights are zero; channels drops whole input
        channels, which makes networks faster too
    :param rounding: nearest codes, or codes that make good on training images what others spoil; by default compensated
        for restorers, nearest for detectors
    :param policy: spark.pt of another run, to go on from
    :param policy_every: steps between two lessons of SPARK's policy, each of which costs a forward pass
    :param batch_size: images per step
    :param patch: side of a restorer's training patches in the restored image, in pixels
    :param seed: of the batches and of the policy
    :param bfloat16: train in bfloat16, but for a restorer's last steps: twice as fast on GPUs and many processors
        (hsq doctor)
    :param json: print what OUT/result.json holds; all else goes to standard error
    """
    from agents.finetune import finetune as run
    from agents.output import aside, print_json
    from agents.run_folder import check_new_folder
    from hsq_env.make import make_task

    check_new_folder(out)
    with aside(json):
        task = make_task(dataset, teacher, splits, network, patch, batch_size=batch_size, seed=seed)
        result = run(
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
            task_settings={"dataset": dataset, "splits": splits, "patch": patch, "seed": seed},
            say=print,
        )
    if json:
        print_json(result)


def shapes(out: Path, train: int = 1024, val: int = 128, test: int = 400, seed: int = 0, json: bool = False) -> None:
    """Write the generated shapes data as a COCO-layout folder.

    Example: hsq shapes --out shapes/
    Example: hsq shapes --out shapes/ --train 8000 --seed 1

    :param out: a folder that does not exist yet
    :param train: images
    :param val: images of the search split
    :param test: images
    :param seed: of all pictures
    :param json: print {"folder", "images": {split: how many}}
    """
    from agents.output import aside
    from agents.tables import print_folder
    from detectors.shapes import write_shapes

    with aside(json):
        folder = write_shapes(out, {"train": train, "val": val, "test": test}, seed)
    print_folder("wrote", folder, as_json=json)


def data(
    what: Positional[Literal["coco"]],
    out: Path,
    splits: tuple[str, ...] = ("val2017", "train2017"),
    images: int | None = None,
    json: bool = False,
) -> None:
    """Fetch COCO 2017's images and boxes as a COCO-layout folder; called again, it goes on where it stopped.

    Example: hsq data coco --out coco/
    Example: hsq data coco --out coco/ --splits val2017 --images 500

    :param what: "coco", the only one so far
    :param out: the folder, with room for 40 GB, or for 2 GB with val2017 alone, which other commands then need as
        each of their --splits
    :param splits: of val2017 and train2017
    :param images: how many of each split to keep, in which every category has its share; all if not given
    :param json: print {"folder", "images": {split: how many}}; all else goes to standard error
    """
    from agents.output import aside
    from agents.tables import print_folder
    from detectors.download import fetch_coco

    with aside(json):
        folder = fetch_coco(out, splits, images=images)
    print_folder(f"fetched {what} to", folder, as_json=json)
