"""The AKD criterion against plain NumPy."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import expit, log_softmax, softmax
from tiny_task import Distilled, TinyTask
from torch import Tensor

from hsq_env.distillation.akd import (
    AKD,
    Places,
    box_divergence,
    categories_divergence,
    centerness_divergence,
    channel_divergence,
    logits_divergence,
    pixel_divergence,
    teacher_confidence,
)
from hsq_env.distillation.attention import AttentionAKD, spatial_attention
from hsq_env.distillation.policy import spread_over, weights_of
from hsq_env.finetuning import akd_loss


def draw(seed: int, *shape: int) -> Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def numpy_bernoulli(student: Tensor, teacher: Tensor, temperature: float) -> NDArray[np.float64]:
    """KL of Bernoulli variables, summed over the last dimension."""
    p, q = expit(teacher.double().numpy() / temperature), expit(student.double().numpy() / temperature)
    return np.asarray(temperature**2 * (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).sum(axis=-1))


def numpy_channels(student: Tensor, teacher: Tensor, temperature: float) -> NDArray[np.float64]:
    """KL of each channel's softmax over space, mean over channels, summed over space; (N,)."""
    log_p, log_q = (
        log_softmax(x.double().numpy().reshape(*x.shape[:2], -1) / temperature, axis=2) for x in (teacher, student)
    )
    return np.asarray(temperature**2 * (np.exp(log_p) * (log_p - log_q)).sum(axis=2).mean(axis=1))


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_logits_divergence_is_bernoulli_kl(temperature: float) -> None:
    student, teacher = draw(0, 2, 5, 3), draw(1, 2, 5, 3)
    found = logits_divergence(student, teacher, temperature)
    assert found.shape == (2, 5)
    np.testing.assert_allclose(found.numpy(), numpy_bernoulli(student, teacher, temperature), rtol=1e-4, atol=1e-6)
    assert (found > 0).all()


def test_logits_divergence_by_hand() -> None:
    """p = 1/2 against q = 1/4: ln 2 / 2 + ln(2/3) / 2."""
    student = torch.tensor([[[np.log(1 / 3)]]], dtype=torch.float64)
    found = logits_divergence(student, torch.zeros(1, 1, 1, dtype=torch.float64), 1.0)
    assert found.item() == pytest.approx(0.5 * np.log(2) + 0.5 * np.log(2 / 3), rel=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_channel_divergence_is_softmax_kl(temperature: float) -> None:
    student, teacher = draw(2, 2, 4, 3, 5), draw(3, 2, 4, 3, 5)
    found = channel_divergence(student, teacher, temperature)
    assert found.shape == (2, 3, 5)
    np.testing.assert_allclose(found.sum(dim=(1, 2)).numpy(), numpy_channels(student, teacher, temperature), rtol=1e-4)


def test_channel_divergence_ignores_a_constant_per_channel() -> None:
    teacher = draw(4, 1, 3, 4, 4)
    shifted = teacher + torch.tensor([1.0, -2.0, 5.0])[None, :, None, None]
    np.testing.assert_allclose(channel_divergence(shifted, teacher, 1.0).numpy(), 0, atol=1e-6)


def test_other_divergences_by_hand() -> None:
    boxes = box_divergence(torch.tensor([[[1.0, 2.0, 3.0, 8.0]]]), torch.tensor([[[0.0, 2.0, 5.0, 7.0]]]))
    assert boxes.tolist() == [[1.0]]
    pixels = pixel_divergence(torch.tensor([[[[1.0]], [[5.0]]]]), torch.tensor([[[[2.0]], [[2.0]]]]))
    assert pixels.tolist() == [[[5.0]]]
    student, teacher = draw(5, 2, 6, 1), draw(6, 2, 6, 1)
    np.testing.assert_allclose(
        centerness_divergence(student, teacher).numpy(), numpy_bernoulli(student, teacher, 1.0), rtol=1e-4, atol=1e-6
    )


def detector_outputs(seed: int) -> list[Distilled]:
    return [
        Distilled("cls", "logits", draw(seed, 2, 6, 3)),
        Distilled("box", "boxes", draw(seed + 1, 2, 6, 4).abs()),
        Distilled("ctr", "centerness", draw(seed + 2, 2, 6, 1)),
        Distilled("p3", "features", draw(seed + 3, 2, 4, 4, 4)),
        Distilled("p4", "features", draw(seed + 4, 2, 4, 2, 2)),
    ]


def test_equal_outputs_have_no_loss() -> None:
    outputs = detector_outputs(10)
    criterion = AKD()
    assert {kind: term.item() for kind, term in criterion.terms(outputs, outputs).items()} == {
        "logits": 0.0,
        "boxes": 0.0,
        "centerness": 0.0,
        "features": 0.0,
    }
    assert criterion.loss(outputs, outputs).item() == 0.0


def test_terms_are_weighted_by_the_teachers_confidence() -> None:
    student, teacher = detector_outputs(20), detector_outputs(30)
    terms = AKD(temperature=2.0).terms(student, teacher)
    confidence = expit(teacher[0].tensor.double().numpy()).max(axis=-1)
    total = confidence.sum()
    boxes = np.abs(student[1].tensor.numpy() - teacher[1].tensor.numpy()).mean(axis=-1)
    maps = [numpy_channels(student[i].tensor, teacher[i].tensor, 1.0).mean() for i in (3, 4)]
    centerness = numpy_bernoulli(student[2].tensor, teacher[2].tensor, 1.0)
    expected = {
        "logits": numpy_bernoulli(student[0].tensor, teacher[0].tensor, 2.0).sum() / total,  # background counts too
        "boxes": (boxes * confidence).sum() / total,
        "centerness": (centerness * confidence).sum() / total,
        "features": np.mean(maps),
    }
    assert list(terms) == list(expected)
    for kind, value in expected.items():
        assert terms[kind].item() == pytest.approx(value, rel=1e-4)


def test_confidence_is_the_highest_class() -> None:
    found = teacher_confidence([Distilled("cls", "logits", torch.tensor([[[0.0, 2.0], [-1.0, -3.0]]]))])
    assert set(found) == {2}
    np.testing.assert_allclose(found[2].numpy(), [[expit(2.0), expit(-1.0)]], rtol=1e-6)
    assert teacher_confidence([Distilled("p", "pixels", torch.zeros(1, 1, 1, 1))]) == {}


def test_confidence_of_one_class_out_of_all_leaves_the_background_out() -> None:
    logits = draw(50, 2, 3, 4)
    found = teacher_confidence([Distilled("cls", "categories", logits)])
    np.testing.assert_allclose(found[3].numpy(), 1 - softmax(logits.numpy(), axis=-1)[..., 0], rtol=1e-5)


def test_outputs_of_two_stages_are_weighted_by_their_own_confidence() -> None:
    """Anchors and proposals side by side: what divides each term is the confidence of its own stage."""
    student, teacher = (
        [
            Distilled("objectness", "logits", draw(seed, 2, 5, 1)),
            Distilled("deltas", "boxes", draw(seed + 1, 2, 5, 4)),
            Distilled("cls", "categories", draw(seed + 2, 6, 1, 3)),
            Distilled("boxes", "boxes", draw(seed + 3, 6, 1, 4)),
        ]
        for seed in (60, 70)
    )
    terms = AKD(temperature=2.0).terms(student, teacher)
    first = expit(teacher[0].tensor.numpy()).max(axis=-1)
    second = 1 - softmax(teacher[2].tensor.numpy(), axis=-1)[..., 0]
    boxes = [
        (np.abs(student[i].tensor.numpy() - teacher[i].tensor.numpy()).mean(axis=-1) * weight).sum() / weight.sum()
        for i, weight in ((1, first), (3, second))
    ]
    p, q = (softmax(items[2].tensor.numpy() / 2, axis=-1) for items in (teacher, student))
    assert terms["boxes"].item() == pytest.approx(np.mean(boxes), rel=1e-4)
    assert terms["categories"].item() == pytest.approx(4 * (p * np.log(p / q)).sum() / second.sum(), rel=1e-4)


def test_places_with_several_anchors_are_weighed_alike() -> None:
    maps = [Distilled("p3", "features", torch.zeros(1, 2, 2, 2)), Distilled("p4", "features", torch.zeros(1, 2, 1, 1))]
    places = Places(maps)
    divergence = torch.arange(15.0)[None]  # five places of three anchors
    weights = torch.tensor([[[0.5, 1.5], [1.5, 0.5]]])
    expected = divergence.reshape(1, 5, 3) * torch.tensor([0.5, 1.5, 1.5, 0.5, 1.0])[None, :, None]
    assert torch.equal(places.weighted(divergence, weights), expected.flatten(1))
    found = places.maps(divergence)
    assert [m.tolist() for m in found] == [[[[3.0, 12.0], [21.0, 30.0]]], [[[39.0]]]]
    assert places.maps(torch.zeros(1, 7)) == []


def test_without_logits_every_location_counts_alike() -> None:
    student = [Distilled("image", "pixels", draw(40, 2, 3, 4, 4))]
    teacher = [Distilled("image", "pixels", draw(41, 2, 3, 4, 4))]
    found = AKD().terms(student, teacher)["pixels"].item()
    assert found == pytest.approx(np.square(student[0].tensor.numpy() - teacher[0].tensor.numpy()).mean(), rel=1e-5)


def test_a_teacher_that_sees_nothing_gives_a_finite_loss() -> None:
    teacher = [Distilled("cls", "logits", torch.full((1, 4, 2), -60.0))]
    loss = AKD().loss([Distilled("cls", "logits", torch.full((1, 4, 2), -59.0))], teacher)
    assert loss.isfinite() and loss.item() >= 0


def test_loss_is_the_weighted_sum() -> None:
    student, teacher = detector_outputs(50), detector_outputs(60)
    weights = {"logits": 1.0, "boxes": 2.0, "centerness": 0.25, "features": 3.0}
    terms = AKD().terms(student, teacher)
    found = AKD(weights=weights).loss(student, teacher).item()
    assert found == pytest.approx(sum(weights[kind] * terms[kind].item() for kind in weights), rel=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_alpha_mixes_task_loss_and_divergence(tiny: TinyTask, alpha: float) -> None:
    batch = tiny.finetuning()[0]
    logits = draw(70, 32, 4, 3)
    state = {"logits": logits, "features": draw(71, 32, 4, 8, 8)}
    teacher = tiny.distilled({"logits": draw(72, 32, 4, 3), "features": draw(73, 32, 4, 8, 8)})
    divergence = AKD().loss(tiny.distilled(state), teacher).item()
    log_p = log_softmax(logits.double().numpy().reshape(-1, 3), axis=1)
    task_loss = -log_p[np.arange(128), batch.labels.numpy().ravel()].mean()
    found = akd_loss(tiny, AKD(), alpha, state, batch, teacher).item()
    assert found == pytest.approx(alpha * task_loss + (1 - alpha) * divergence, rel=1e-5)


def test_task_loss_is_not_computed_where_it_has_no_share(tiny: TinyTask) -> None:
    state = {"logits": draw(80, 32, 4, 3), "features": draw(81, 32, 4, 8, 8)}
    no_batch: object = None  # its labels would be asked for
    assert akd_loss(tiny, AKD(), 0.0, state, no_batch, tiny.distilled(state)).item() == 0.0  # type: ignore[arg-type]


def test_attention_is_a_map_of_mean_1_that_is_high_where_features_are_active() -> None:
    teacher = torch.zeros(2, 3, 4, 5)
    teacher[0, :, 1, 2] = 4.0
    mask = spatial_attention(torch.zeros_like(teacher), teacher)
    assert mask.mean(dim=(1, 2)).tolist() == pytest.approx([1.0, 1.0])
    peak = np.exp(20 / 0.5)  # 20 places share the mean activity, and one has all of it
    assert mask[0].argmax() == 1 * 5 + 2 and mask[0, 1, 2] == pytest.approx(20 * peak / (peak + 19), rel=1e-5)
    assert mask[1].eq(1).all()


def test_attention_does_not_depend_on_how_large_features_are() -> None:
    student, teacher = (draw(seed, 2, 3, 4, 5) for seed in (90, 91))
    mask = spatial_attention(student, teacher)
    torch.testing.assert_close(spatial_attention(100 * student, 100 * teacher), mask)
    assert 1 < mask.max() < 4


def test_attention_weighs_features_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    pairs = [torch.randn(2, 3, 4, 5, generator=generator) for _ in range(2)]
    logits = [torch.randn(2, 20, 3, generator=generator) for _ in range(2)]
    student, teacher = (
        [Distilled("l", "logits", a), Distilled("f", "features", b)] for a, b in zip(logits, pairs, strict=True)
    )
    plain, attentive = AKD().terms(student, teacher), AttentionAKD().terms(student, teacher)
    assert plain["logits"] == attentive["logits"]
    expected = (channel_divergence(*pairs, 1.0) * spatial_attention(*pairs)).sum(dim=(1, 2)).mean()
    torch.testing.assert_close(attentive["features"], expected)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_categories_divergence_is_softmax_kl(temperature: float) -> None:
    student, teacher = draw(90, 2, 5, 4), draw(91, 2, 5, 4)
    log_p, log_q = (log_softmax(x.double().numpy() / temperature, axis=-1) for x in (teacher, student))
    expected = temperature**2 * (np.exp(log_p) * (log_p - log_q)).sum(axis=-1)
    np.testing.assert_allclose(categories_divergence(student, teacher, temperature).numpy(), expected, rtol=1e-4)


def test_places_of_maps_that_are_not_square() -> None:
    maps = [Distilled("p3", "features", torch.zeros(2, 3, 2, 3)), Distilled("p4", "features", torch.zeros(2, 3, 1, 2))]
    places = Places([Distilled("logits", "logits", torch.zeros(2, 9, 1)), *maps])
    assert (places.sizes, places.counts) == ([(2, 3), (1, 2)], [6, 2])
    divergence = torch.arange(32.0).reshape(2, 16)  # two anchors
    found = places.maps(divergence)
    assert [m.shape for m in found] == [(2, 2, 3), (2, 1, 2)]
    assert found[0][1].tolist() == [[33.0, 37.0, 41.0], [45.0, 49.0, 53.0]] and found[1][0].tolist() == [[25.0, 29.0]]
    weights = weights_of(draw(92, 2, 4, 4))
    spread = torch.cat([spread_over(weights, 2, 3).flatten(1), spread_over(weights, 1, 2).flatten(1)], dim=1)
    expected = (divergence.reshape(2, 8, 2) * spread[:, :, None]).reshape(2, 16)
    torch.testing.assert_close(places.weighted(divergence, weights), expected)


def test_maps_have_places_of_their_own() -> None:
    places, weights = Places([]), weights_of(draw(93, 2, 4, 4))
    divergence = draw(94, 2, 6, 5).abs()
    assert places.maps(divergence) == [divergence]
    torch.testing.assert_close(places.weighted(divergence, weights), divergence * spread_over(weights, 6, 5))
    nowhere = draw(95, 2, 7)
    assert places.weighted(nowhere, weights) is nowhere and places.maps(nowhere) == []


def test_gaps_are_weighted_maps() -> None:
    student, teacher = detector_outputs(100), detector_outputs(110)
    teacher, student = [*teacher[:1], *teacher[3:4]], [*student[:1], *student[3:4]]  # 6 locations, 16 places
    (found,) = AKD(weights={"logits": 7.0, "features": 0.5}, feature_temperature=2.0).gaps(student, teacher)
    expected = 0.5 * channel_divergence(student[1].tensor, teacher[1].tensor, 2.0)
    assert torch.equal(found, expected)
    both = [Distilled("l", "logits", draw(96, 2, 16, 3)), *teacher[1:]], [Distilled("l", "logits", draw(97, 2, 16, 3))]
    found, _ = AKD(weights={"logits": 7.0, "features": 0.5}, temperature=3.0).gaps([*both[1], *student[1:]], both[0])
    torch.testing.assert_close(found.flatten(1), 7 * logits_divergence(both[1][0].tensor, both[0][0].tensor, 3.0))


def test_an_unknown_kind_of_output_is_an_error() -> None:
    odd = [Distilled("x", "sound", torch.zeros(1, 2, 3))]
    with pytest.raises(KeyError, match="sound"):
        AKD().terms(odd, odd)


def test_weights_of_places_are_put_between_divergence_and_sum() -> None:
    """Two maps of 4x4 and 2x2, and logits at all of their 20 places."""
    student, teacher = (
        [
            Distilled("l", "logits", draw(seed, 2, 20, 3)),
            Distilled("p3", "features", draw(seed + 1, 2, 4, 4, 4)),
            Distilled("p4", "features", draw(seed + 2, 2, 4, 2, 2)),
        ]
        for seed in (120, 130)
    )
    weights = weights_of(draw(140, 2, 8, 8))
    spread = [spread_over(weights, side, side) for side in (4, 2)]
    found = AKD(temperature=2.0).terms(student, teacher, weights)
    everywhere = torch.cat([s.flatten(1) for s in spread], dim=1)
    logits = (logits_divergence(student[0].tensor, teacher[0].tensor, 2.0) * everywhere).sum()
    torch.testing.assert_close(found["logits"], logits / teacher[0].tensor.sigmoid().amax(dim=-1).sum())
    maps = [
        (channel_divergence(s.tensor, t.tensor, 1.0) * own).sum(dim=(1, 2)).mean()
        for s, t, own in zip(student[1:], teacher[1:], spread, strict=True)
    ]
    torch.testing.assert_close(found["features"], (maps[0] + maps[1]) / 2)
    criterion = AKD(weights={"logits": 2.0, "features": 0.25}, temperature=2.0)
    torch.testing.assert_close(
        criterion.loss(student, teacher, weights), 2.0 * found["logits"] + 0.25 * found["features"]
    )


def test_images_count_alike_whatever_else_is_put_out() -> None:
    """Four locations with a confidence do not weigh the four rows of two images."""
    student, teacher = (
        [
            Distilled("l", "logits", draw(seed, 1, 4, 3)),
            Distilled("one", "pixels", draw(seed + 1, 1, 2, 4, 4)),
            Distilled("other", "pixels", draw(seed + 2, 1, 2, 4, 4)),
        ]
        for seed in (150, 160)
    )
    squares = [(s.tensor - t.tensor).square().mean() for s, t in zip(student[1:], teacher[1:], strict=True)]
    torch.testing.assert_close(AKD().terms(student, teacher)["pixels"], (squares[0] + squares[1]) / 2)
