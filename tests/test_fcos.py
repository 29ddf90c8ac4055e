"""The detector against torchvision's own: names, shapes, forward pass, folding."""

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, fcos_resnet50_fpn
from torchvision.ops.misc import FrozenBatchNorm2d

from detectors.backbone import fold_batch_norm
from detectors.batches import Batch, make_batch
from detectors.fcos import build_fcos, fcos_stages, head_outputs
from detectors.stages import State, run_stages
from hsq_env.states import Dependencies, KeptStates

BatchNorm = nn.BatchNorm2d | FrozenBatchNorm2d


def _small_detector(seed: int = 0) -> FCOS:
    """Quarter width, with batch norms that do something, as after training."""
    torch.manual_seed(seed)
    model = build_fcos(5, width=0.25, level_scale=0.25, min_size=64, max_size=96)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            module.running_mean = torch.randn(module.num_features) * 0.1
            module.running_var = torch.rand(module.num_features) + 0.5
    return model.eval()


def _freeze_batch_norms(model: nn.Module) -> None:
    """Replace every batch norm by torchvision's frozen one with the same statistics."""
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if isinstance(module, nn.BatchNorm2d):
                frozen = FrozenBatchNorm2d(module.num_features, module.eps)
                state = module.state_dict()
                frozen.load_state_dict({key: state[key] for key in frozen.state_dict()})
                setattr(parent, name, frozen)


def _images(seed: int = 1) -> Tensor:
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def _torchvision_outputs(model: FCOS, images: Tensor) -> tuple[list[Tensor], dict[str, Tensor]]:
    features = list(model.backbone(images).values())
    return features, model.head(features)


def test_full_width_has_torchvisions_names_and_shapes() -> None:
    with torch.device("meta"):
        reference = fcos_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91)
        model = build_fcos(91)
    expected = {name: tuple(tensor.shape) for name, tensor in reference.state_dict().items()}
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == expected
    assert model.anchor_generator.sizes == reference.anchor_generator.sizes
    assert model.center_sampling_radius == reference.center_sampling_radius


def test_level_scale_moves_object_sizes_and_leaves_center_sampling_in_pixels() -> None:
    with torch.device("meta"):
        reference, scaled = build_fcos(5), build_fcos(5, level_scale=0.25)
    sizes = [size for (size,) in scaled.anchor_generator.sizes]
    assert sizes == [size / 4 for (size,) in reference.anchor_generator.sizes]
    # torchvision measures the radius in anchor sizes
    assert scaled.center_sampling_radius * sizes[0] == reference.center_sampling_radius * 4 * sizes[0]


def test_72_convolutions_at_both_widths() -> None:
    with torch.device("meta"):
        full, quarter = build_fcos(12), build_fcos(12, width=0.25)
    names = [name for name, module in full.named_modules() if isinstance(module, nn.Conv2d)]
    assert len(names) == 72
    assert [name for name, module in quarter.named_modules() if isinstance(module, nn.Conv2d)] == names
    assert round(sum(p.numel() for p in quarter.parameters()) / 1e6, 1) == 2.0


@torch.no_grad()
def test_stages_equal_torchvisions_forward() -> None:
    model, images = _small_detector(), _images()
    features, outputs = _torchvision_outputs(model, images)
    state = run_stages(fcos_stages(model), {"images": images})
    assert state.keys() == {"features", "cls_logits", "bbox_regression", "bbox_ctrness"}
    assert all(torch.equal(own, other) for own, other in zip(state["features"], features, strict=True))
    assert outputs.keys() == head_outputs(state).keys()
    for name, output in head_outputs(state).items():
        assert torch.equal(output, outputs[name]), name


@torch.no_grad()
def test_stages_leave_their_argument_as_it_was() -> None:
    def copy(state: State) -> dict[str, list[Tensor]]:
        return {k: [x.clone() for x in (v if isinstance(v, list) else [v])] for k, v in state.items()}

    for model in (_small_detector(), fold_batch_norm(_small_detector())):
        assert isinstance(model, FCOS)
        state: State = {"images": _images()}
        for stage in fcos_stages(model):
            before = copy(state)
            following = stage.run(state)
            after = copy(state)
            assert before.keys() == after.keys()
            for key, tensors in before.items():
                assert all(torch.equal(a, b) for a, b in zip(tensors, after[key], strict=True)), (stage.name, key)
            state = following


@torch.no_grad()
def test_each_convolution_runs_in_exactly_one_stage() -> None:
    model = _small_detector()
    ran: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda *_, name=name: ran.append(name))
    stages = fcos_stages(model)
    assert len({stage.name for stage in stages}) == len(stages) == 31
    state, seen = {"images": _images()}, set[str]()
    for stage in stages:
        ran.clear()
        state = stage.run(state)
        assert ran and seen.isdisjoint(ran), stage.name
        seen.update(ran)
    assert len(seen) == 72


def _assert_folding_keeps_outputs(model: FCOS) -> None:
    images = _images()
    features, outputs = _torchvision_outputs(model, images)
    folded = fold_batch_norm(model)
    assert folded is model
    assert not any(isinstance(module, BatchNorm) for module in model.modules())
    folded_features, folded_outputs = _torchvision_outputs(model, images)
    for own, other in zip(folded_features, features, strict=True):
        assert (own - other).abs().max() < 1e-5 * other.abs().max()
    for name, output in outputs.items():
        assert (folded_outputs[name] - output).abs().max() < 1e-4, name


def test_folding_keeps_outputs() -> None:
    _assert_folding_keeps_outputs(_small_detector())


def test_folding_frozen_batch_norms_keeps_outputs() -> None:
    model = _small_detector()
    _freeze_batch_norms(model)
    assert any(isinstance(module, FrozenBatchNorm2d) for module in model.modules())
    _assert_folding_keeps_outputs(model)


def test_folding_both_kinds_gives_the_same_weights() -> None:
    plain, frozen = _small_detector(), _small_detector()
    _freeze_batch_norms(frozen)
    plain_state, frozen_state = fold_batch_norm(plain).state_dict(), fold_batch_norm(frozen).state_dict()
    assert plain_state.keys() == frozen_state.keys()
    assert all(torch.equal(tensor, frozen_state[name]) for name, tensor in plain_state.items())


# ---- what a stage reads


@torch.no_grad()
def test_a_stage_needs_only_what_it_says_it_reads() -> None:
    state: State = {"images": _images()}
    for stage in fcos_stages(fold_batch_norm(_small_detector())):  # type: ignore[arg-type]
        assert stage.reads is not None
        whole, alone = stage.run(state), stage.run({key: state[key] for key in stage.reads})
        assert alone.keys() <= whole.keys()
        for key, value in alone.items():
            pairs = zip(value, whole[key], strict=True) if isinstance(value, list) else [(value, whole[key])]
            assert all(torch.equal(one, other) for one, other in pairs)
        state = whole


def test_the_regression_tower_does_not_depend_on_the_classification_tower() -> None:
    model = fold_batch_norm(_small_detector())
    assert isinstance(model, FCOS)
    stages, batch = fcos_stages(model), make_batch([torch.zeros(3, 64, 96, dtype=torch.uint8)], [{}], [1])
    dependencies = Dependencies(stages, batch)
    blocks: dict[str, list[int]] = {}
    for index, stage in enumerate(stages):
        blocks.setdefault(stage.block, []).append(index)
    free = {
        name: [stages[i].block for i in dependencies.route(range(block[0], block[-1] + 1)).free]
        for name, block in blocks.items()
    }
    assert free.pop("head.classification") == ["head.regression"] * 5
    assert all(found == [] for found in free.values()) and len(free) == 22


@torch.no_grad()
def test_another_classification_tower_beside_the_kept_regression_tower() -> None:
    model = fold_batch_norm(_small_detector())
    assert isinstance(model, FCOS)
    stages = fcos_stages(model)
    batch = Batch(_images(), ((64, 96),) * 2, (1, 2), ())
    kept = KeptStates([batch])
    start = [stage.block for stage in stages].index("head.classification")
    kept.enter(Dependencies(stages, batch).route(range(start, start + 5)))
    before = kept.route.finish(stages, kept.state(stages, 0))
    model.head.classification_head.conv[3].weight.mul_(1.5)
    found, expected = kept.route.finish(stages, kept.state(stages, 0)), run_stages(stages, {"images": batch.images})
    for key in ("cls_logits", "bbox_regression", "bbox_ctrness"):
        assert torch.equal(found[key], expected[key])
        assert torch.equal(found[key], before[key]) == (key != "cls_logits")
