"""A restorer in the environment, with two tiny networks and pictures of stripes."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from PIL import Image
from torch.nn import functional as F

from detectors.errors import InputError
from detectors.teacher import freeze
from hsq_env.choices import Choice, Plan
from hsq_env.env import HSQEnv
from hsq_env.file import load_hsq, save_hsq
from hsq_env.layer_info import trace_layers
from hsq_env.long_finetuning import finetune_all
from hsq_env.onnx_file import onnx_bytes, outputs_of
from hsq_env.onnx_integer import integer_form
from hsq_env.quantizers import activation_range
from hsq_env.student import Student, evaluate
from restorers.images import Photos
from restorers.metric import psnr
from restorers.networks import DnCNN, edsr
from restorers.task import PIXEL_UNIT, RestorationTask, restoration_task
from restorers.teacher import RestorerSpec, teacher_bytes

DENOISING, ENLARGING = RestorerSpec("dncnn", 1, noise=25), RestorerSpec("edsr", 3, scale=2)


def photos(count: int, channels: int, seed: int) -> Photos:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:40, :36]
    pictures = []
    for _ in range(count):
        waves = [np.sin(rng.uniform(0.1, 0.5) * x + rng.uniform(0.1, 0.5) * y) for _ in range(channels)]
        pictures.append((127 + 100 * np.stack(waves, axis=2)).astype(np.uint8))
    flat = tuple(p[..., 0] if channels == 1 else p for p in pictures)
    return Photos(tuple(f"{i}.png" for i in range(count)), flat)


def splits(channels: int) -> dict[str, Photos]:
    return {
        role: photos(count, channels, seed)
        for seed, (role, count) in enumerate((("train", 4), ("search", 2), ("test", 3)))
    }


def make(spec: RestorerSpec, **settings: Any) -> RestorationTask:
    torch.manual_seed(0)
    model = DnCNN(spec.channels, 4, 8) if spec.noise else edsr(2, 3, blocks=2, width=8)
    if isinstance(model, DnCNN):
        model.dncnn = torch.nn.Sequential(*(m for m in model.dncnn if not isinstance(m, torch.nn.BatchNorm2d)))
        for parameter in model.parameters():
            parameter.data *= 0.5
    freeze(model)
    given = {"search_images": 4, "pool_images": 4, "calibration_images": 2, "batch_size": 2, "patch": 16, **settings}
    return RestorationTask("stripes", model, spec, splits(spec.channels), **given)


@pytest.fixture(scope="module", params=[DENOISING, ENLARGING], ids=lambda spec: str(spec.restorer))
def task(request: pytest.FixtureRequest) -> RestorationTask:
    return make(request.param)


def test_patches_and_images(task: RestorationTask) -> None:
    channels, scale = task.spec.channels, task.spec.scale
    assert [len(b.images) for b in task.finetuning()] == [2, 2] and len(task.calibration()) == 1
    assert torch.equal(task.calibration()[0].images, task.finetuning()[0].images)
    assert [tuple(b.targets.shape) for b in task.evaluation("search")] == [(2, channels, 16, 16)] * 2
    assert [tuple(b.targets.shape) for b in task.evaluation("test")] == [(1, channels, 40, 36)] * 3
    assert task.evaluation("test")[0].images.shape[2:] == (40 // scale, 36 // scale)
    for split in ("search", "test"):
        assert task.evaluation(split) is task.evaluation(split)


def test_degradation() -> None:
    noisy = torch.cat([(b.images - b.targets).flatten() for b in make(DENOISING).evaluation("test")])
    assert noisy.std().item() * 255 == pytest.approx(25, rel=0.05)
    small = make(ENLARGING).evaluation("test")[0]
    halved = F.interpolate(small.targets, scale_factor=0.5, mode="bicubic", antialias=True, align_corners=False)
    np.testing.assert_allclose(small.images, halved.clamp(0, 1), atol=1.5 / 255)


def test_splits_have_other_noise() -> None:
    task = make(DENOISING, search_images=2, pool_images=2)
    drawn = [(b.images - b.targets) for b in (task.finetuning()[0], task.evaluation("search")[0])]
    assert not torch.allclose(drawn[0], drawn[1], atol=1e-3)


def test_long_fine_tuning_follows_the_seed(task: RestorationTask) -> None:
    same, other = make(task.spec), make(task.spec, seed=1)
    assert torch.equal(task.long_finetuning(3).images, same.long_finetuning(3).images)
    assert not torch.equal(task.long_finetuning(3).targets, other.long_finetuning(3).targets)
    assert not torch.equal(task.long_finetuning(3).targets, task.long_finetuning(4).targets)


def test_losses_and_errors(task: RestorationTask) -> None:
    batch = task.finetuning()[0]
    state: dict[str, Any] = {"images": batch.images}
    for stage in task.stages(task.teacher):
        state = stage.run(state)
    difference = (state["restored"] - batch.targets).abs()
    assert task.task_loss(state, batch).item() == pytest.approx(difference.mean().item() / PIXEL_UNIT, rel=1e-5)
    (errors,) = task.error_maps(state, batch)
    assert torch.equal(errors, difference.mean(dim=1))
    (output,) = task.distilled(state)
    assert output.kind == "pixels" and torch.equal(output.tensor, state["restored"] / PIXEL_UNIT)


def test_the_metric_is_mean_psnr(task: RestorationTask) -> None:
    values = []
    for batch in task.evaluation("test"):
        with torch.no_grad():
            restored = task.teacher(batch.images)[0].permute(1, 2, 0).double().numpy()
        clean = batch.targets[0].permute(1, 2, 0).double().numpy()
        if task.spec.scale > 1:
            restored = (restored.clip(0, 1) * 255).round() / 255
            values.append(psnr(restored, clean, shave=2, y_only=True))
        else:
            values.append(psnr(restored[..., 0], clean[..., 0]))
    assert evaluate(task, task.stages(task.teacher), "test") == pytest.approx(np.mean(values), rel=1e-6)


def test_untreated_images_score_too(task: RestorationTask) -> None:
    """Noise of 25 leaves 20.17 dB where nothing is clipped; Pillow's filter enlarges."""
    found = task.untreated_metric("test")
    if task.spec.noise:
        assert found == pytest.approx(20 * np.log10(255 / 25), abs=0.5)
        return
    values = []
    for batch in task.evaluation("test"):
        small, clean = (t[0].permute(1, 2, 0).double().numpy() for t in (batch.images, batch.targets))
        enlarged = Image.fromarray((small * 255).round().astype(np.uint8)).resize(clean.shape[1::-1], Image.BICUBIC)
        values.append(psnr(np.asarray(enlarged) / 255, clean, shave=2, y_only=True))
    assert found == pytest.approx(np.mean(values), abs=1e-4)


def test_an_episode_and_its_file(task: RestorationTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same environment, the same file: what is read back restores the same images."""
    with pytest.raises(InputError, match=r"and images as they come \d\d\.\d"):
        HSQEnv(task)  # the teacher has learned nothing
    monkeypatch.setattr(RestorationTask, "untreated_metric", lambda self, split: 0.0)
    env = HSQEnv(task, alpha=0.3)
    check_env(env, skip_render_check=True)
    env.reset()
    done, info = False, {}
    while not done:
        _, reward, done, _, info = env.step(env.actions.encode(4, env.alpha))
        assert np.isfinite(reward)
    assert info["ratio"] > 1 and 0 < info["accuracy"] < 1.2
    save_hsq(env.student, tmp_path / "model.hsq")
    model = make(task.spec).teacher
    load_hsq(tmp_path / "model.hsq", model)
    freeze(model)
    expected = evaluate(task, env.student.stages, "test")
    assert evaluate(task, task.stages(model), "test") == expected


def test_fine_tuning_repairs(task: RestorationTask) -> None:
    """The networks are random, so that what counts is how near the student comes to its teacher."""
    student = Student(task, trace_layers(task))
    student.apply(Plan(tuple(i.name for i in student.infos), (Choice(2, 0.5),) * len(student.infos)))

    @torch.no_grad()
    def gap() -> float:
        return float(
            np.mean([(student.outputs(b)["restored"] - task.teacher(b.images)).abs().mean() for b in task.finetuning()])
        )

    before = gap()
    assert finetune_all(student, 80, alpha=0.0, pace=1.0)
    assert gap() < 0.8 * before


@pytest.mark.parametrize(("patch", "said"), [(15, "A patch of 15 pixels"), (8, "A patch of 8 pixels")])
def test_patches_that_do_not_go(patch: int, said: str) -> None:
    with pytest.raises(InputError, match=said):
        make(ENLARGING, patch=patch)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"seed": -1}, "The seed is -1: give 0 or more (--seed)."),
        ({"batch_size": 0}, "batch_size is 0: give 1 or more."),
        ({"pool_images": 0}, "pool_images is 0: give 1 or more"),
        ({"calibration_images": 0}, "calibration_images is 0: give 1 or more"),
        ({"search_images": -1}, "search_images is -1: give 1 or more"),
        ({"test_images": 0}, "test_images is 0: give 1 or more"),
    ],
)
def test_numbers_that_do_not_go(given: dict[str, int], said: str) -> None:
    with pytest.raises(InputError, match="^" + re.escape(said)):
        make(DENOISING, **given)


def test_a_flat_patch_that_is_restored_exactly_leaves_psnr_finite() -> None:
    """White pages: rounded to 8 bits, outputs equal them, and so does what bicubic interpolation makes of them."""
    task = make(ENLARGING)
    pages = Photos(("a.png", "b.png"), (np.full((40, 36, 3), 255, np.uint8), photos(1, 3, seed=5).pixels[0]))
    task = RestorationTask("pages", task.teacher, ENLARGING, {**splits(3), "search": pages}, patch=16)
    assert 20 < task.untreated_metric("search") < 100


def test_images_that_do_not_go() -> None:
    with pytest.raises(InputError, match=r"0\.png of the train split is 36x40, smaller than the patch of 64"):
        make(DENOISING, patch=64)
    with pytest.raises(InputError, match="does not have the 1 channels"):
        RestorationTask("x", make(DENOISING).teacher, DENOISING, splits(3), patch=16)  # type: ignore[arg-type]


def test_a_task_from_files(tmp_path: Path) -> None:
    spec = RestorerSpec("dncnn", 1, noise=15)
    teacher = tmp_path / "teacher.safetensors"
    teacher.write_bytes(teacher_bytes(spec.build_folded(), spec))
    for i, pixels in enumerate(photos(10, 1, 0).pixels):
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i}.png")
    task = restoration_task(tmp_path / "photos", teacher, patch=32, search_images=2, pool_images=2)
    assert task.spec == spec and task.name == "photos" and len(task.evaluation("test")) == 1
    with pytest.raises(InputError, match="needs a teacher"):
        restoration_task(tmp_path / "photos")


def reading(task: RestorationTask, bits: int) -> Student:
    """A student with 8 bits whose first layer reads the image in so many."""
    student = Student(task, trace_layers(task))
    student.apply(Plan(tuple(info.name for info in student.infos), (Choice(8, 0.0),) * len(student.infos)))
    student.layers[0].activations = (activation_range(*student.infos[0].input_ranges[0], bits),)
    return student


def test_what_the_first_layer_rounds_off_is_not_put_back() -> None:
    """The noise is subtracted from the image as the network has read it."""
    task = make(DENOISING)
    student = reading(task, 4)
    batch, silenced = task.evaluation("test")[0], student.layers[-1]
    silenced.stored_weight, silenced.stored_bias = torch.zeros_like(silenced.weight), None
    restored = student.outputs(batch)["restored"]
    assert torch.equal(restored, student.layers[0].activations[0](batch.images))
    assert len(restored.unique()) <= 16 < len(batch.images.unique())


@pytest.mark.parametrize("bits", [8, 4])
def test_a_file_for_onnxruntime_hands_on_the_rounded_image_too(bits: int) -> None:
    """Rounding is much coarser than where both may differ, next to boundaries between codes."""
    task = make(DENOISING)
    student = reading(task, bits)
    images = task.evaluation("test")[0].images
    rounded = (student.layers[0].activations[0](images) - images).abs().mean()
    expected = student.outputs(task.evaluation("test")[0])["restored"]
    for content in (
        onnx_bytes(student.model, task.stages, images),
        integer_form(onnx_bytes(student.model, task.stages, images, widen=True), [images.numpy()]),
    ):
        found = torch.from_numpy(outputs_of(content)(images.numpy())["restored"])
        assert (found - expected).abs().mean() < 0.5 * rounded
    assert torch.equal(student.model(images), expected)
