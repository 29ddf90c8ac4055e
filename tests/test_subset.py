"""Parts of a data set with their share of every category."""

from collections import Counter
from typing import Any

import numpy as np
import pytest

from detectors.subset import stratified


def data(count: int, seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Images of which a few have rare categories, many a common one, and some nothing."""
    rng = np.random.default_rng(seed)
    images = [{"id": 3 * i + 7} for i in range(count)]
    shares = {1: 0.6, 2: 0.3, 3: 0.1, 9: 0.04}
    annotations = [
        {"image_id": image["id"], "category_id": category}
        for image in images
        for category, share in shares.items()
        for _ in range(int(rng.random() < share) * int(rng.integers(1, 4)))
    ]
    return images, annotations


def images_per_category(ids: list[int], annotations: list[dict[str, Any]]) -> Counter[int | None]:
    """How many of the images have each; None for those without objects."""
    wanted, found = set(ids), Counter[int | None]()
    own: dict[int, set[int]] = {i: set() for i in wanted}
    for annotation in annotations:
        if annotation["image_id"] in wanted:
            own[annotation["image_id"]].add(annotation["category_id"])
    for some in own.values():
        found.update(some or {None})
    return found


@pytest.mark.parametrize("count", [50, 100, 400])
def test_every_category_has_its_share(count: int) -> None:
    images, annotations = data(1000, 0)
    ids = stratified(images, annotations, count)
    assert len(ids) == len(set(ids)) == count and ids == sorted(ids)
    everything = images_per_category([image["id"] for image in images], annotations)
    found = images_per_category(ids, annotations)
    assert set(everything) == {1, 2, 3, 9, None}
    for category, number in everything.items():
        assert abs(found[category] - number * count / 1000) <= 2.5, category
    shuffled = [annotations[i] for i in np.random.default_rng(1).permutation(len(annotations))]
    assert stratified(images[::-1], shuffled, count) == ids


def test_more_than_there_are_is_all() -> None:
    images, annotations = data(10, 0)
    assert stratified(images, annotations, 10) == stratified(images, annotations, 99) == [i["id"] for i in images]


@pytest.mark.parametrize("images", [1, 2, 7, 40])
def test_any_number_is_met(images: int) -> None:
    for seed in range(3):
        given, annotations = data(images, seed)
        for count in range(images + 2):
            assert len(stratified(given, annotations, count)) == min(images, count)
