"""Restoration networks and their teacher files."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn

from detectors.errors import InputError
from detectors.teacher import SHIPPED_TEACHER
from hsq_env.states import run
from restorers.networks import RGB_MEAN, DnCNN, edsr, srresnet
from restorers.teacher import (
    RestorerSpec,
    folded,
    is_restorer,
    load_published,
    load_teacher,
    restorer_stages,
    teacher_bytes,
)

SPECS = [RestorerSpec("dncnn", 1, noise=25), RestorerSpec("edsr", 3, scale=2), RestorerSpec("srresnet", 3, scale=4)]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def with_statistics(model: nn.Module) -> nn.Module:
    """Batch norms as after a training."""
    for number, module in enumerate(model.modules()):
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = 0.1 * noise(module.num_features, seed=number)
            module.running_var = 0.5 + noise(module.num_features, seed=number + 1).abs()
            module.weight.data = 1 + 0.1 * noise(module.num_features, seed=number + 2)
            module.bias.data = 0.1 * noise(module.num_features, seed=number + 3)
    return model.eval()


@pytest.mark.parametrize(
    ("spec", "parameters", "convolutions"),
    list(zip(SPECS, (556_032, 1_369_859, 1_549_462), (17, 36, 37), strict=True)),
)
def test_sizes_are_the_papers(spec: RestorerSpec, parameters: int, convolutions: int) -> None:
    """DnCNN 0.56 M, EDSR-baseline 1.37 M, SRResNet 1.55 M, with batch norm."""
    model = spec.build()
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert sum(isinstance(m, nn.Conv2d) for m in model.modules()) == convolutions


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: str(spec.restorer))
def test_folding_keeps_outputs_and_stages_are_the_forward_pass(spec: RestorerSpec) -> None:
    model, images = with_statistics(spec.build()), noise(2, spec.channels, 12, 10).abs()
    with torch.no_grad():
        expected = model(images)
        folded(model)  # type: ignore[arg-type]
        assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
        np.testing.assert_allclose(model(images), expected, rtol=1e-3, atol=1e-4)
        restored = run(restorer_stages(model), {"images": images})["restored"]
    assert torch.equal(restored, model(images).detach())
    assert restored.shape == (2, spec.channels, 12 * spec.scale, 10 * spec.scale)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: str(spec.restorer))
def test_stages_run_on_what_they_say_they_read(spec: RestorerSpec) -> None:
    model, state = spec.build_folded(), {"images": noise(1, spec.channels, 8, 8)}
    stages = restorer_stages(model)
    assert len({stage.name for stage in stages}) == len(stages)
    for stage in stages:
        assert stage.reads is not None
        after = stage.run(state)
        alone = stage.run({key: state[key] for key in stage.reads})
        assert all(torch.equal(alone[key], after[key]) for key in alone)
        state = {**state, **after}


def test_dncnn_subtracts_what_it_predicts() -> None:
    model, images = DnCNN(depth=3, width=4), noise(1, 1, 8, 8)
    assert torch.equal(model(images), images - model.dncnn(images))


def test_edsr_sees_images_without_their_mean() -> None:
    """With all weights 0 the mean colour is what comes out."""
    model = edsr(2, blocks=1, width=4)
    for parameter in model.parameters():
        parameter.data.zero_()
    restored = model(noise(1, 3, 4, 4))
    np.testing.assert_allclose(restored.mean(dim=(2, 3))[0].detach(), RGB_MEAN, rtol=1e-6)


def test_grey_images_use_the_mean_of_the_mean() -> None:
    assert edsr(channels=1, blocks=1).mean.tolist() == pytest.approx([sum(RGB_MEAN) / 3])
    assert srresnet(channels=1, blocks=1).mean.tolist() == [0]


# ---- teacher files


def file(folder: Path, content: bytes) -> Path:
    path = folder / "teacher.safetensors"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: str(spec.restorer))
def test_a_teacher_file_gives_the_same_network(spec: RestorerSpec, tmp_path: Path) -> None:
    model = spec.build_folded()
    found, same = load_teacher(file(tmp_path, teacher_bytes(model, spec)))
    assert same == spec
    images = noise(1, spec.channels, 8, 8)
    with torch.no_grad():
        assert torch.equal(found(images), model(images))
    assert not any(p.requires_grad for p in found.parameters()) and not found.training


def test_published_weights_are_folded(tmp_path: Path) -> None:
    spec = RestorerSpec("dncnn", 1, noise=25)
    model, images = with_statistics(spec.build()), noise(1, 1, 8, 8)
    state = {n: t for n, t in model.state_dict().items() if not n.endswith("num_batches_tracked")}
    found = load_published(file(tmp_path, save(state)), spec)
    with torch.no_grad():
        np.testing.assert_allclose(found(images), model(images), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"restorer": "unet"}, "Unknown restorer 'unet': known are dncnn, edsr, srresnet."),
        ({"restorer": "dncnn", "channels": 4, "noise": 25}, "Images of 4 channels cannot be restored"),
        ({"restorer": "dncnn"}, "dncnn removes noise: give a level above 0, up to 255, not 0."),
        ({"restorer": "dncnn", "noise": 25, "scale": 2}, "dncnn removes noise"),
        ({"restorer": "edsr", "scale": 3}, "edsr enlarges: give a scale of 2 or 4, not 3, and no noise."),
        ({"restorer": "edsr", "scale": 2, "noise": 25}, "edsr enlarges"),
    ],
)
def test_problems_that_do_not_exist(arguments: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match="^" + said.replace("(", r"\(")):
        RestorerSpec(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({}, "is not a restorer's teacher"),
        ({"format": "hsq-teacher", "spec": "{}"}, "is not a restorer's teacher"),
        ({"format": "hsq-teacher", "restorer": '{"restorer": "unet"}'}, "does not describe its restorer"),
        ({"format": "hsq-teacher", "restorer": "{"}, "does not describe its restorer"),
        (
            {"format": "hsq-teacher", "restorer": json.dumps({"restorer": "edsr", "channels": 1, "scale": 2})},
            "does not fit the network",
        ),
    ],
)
def test_foreign_files(metadata: dict[str, str], said: str, tmp_path: Path) -> None:
    path = file(tmp_path, save(SPECS[1].build().state_dict(), metadata))
    with pytest.raises(InputError) as error:
        load_teacher(path)
    assert said in str(error.value) and str(path) in str(error.value)


def test_teachers_are_told_apart(tmp_path: Path) -> None:
    assert is_restorer(file(tmp_path, teacher_bytes(SPECS[0].build_folded(), SPECS[0])))
    assert not is_restorer(SHIPPED_TEACHER)
    with pytest.raises(InputError, match="There is no teacher file"):
        is_restorer(tmp_path / "absent")
