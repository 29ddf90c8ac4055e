"""A part of a data set in which every category has its share."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def stratified(images: Sequence[dict[str, Any]], annotations: Sequence[dict[str, Any]], count: int) -> list[int]:
    """Ids of images such that each category is in as large a share of them as of all.

    Iterative stratification (Sechidis et al. 2011, "On the Stratification of Multi-Label Data") for one part: always
    the category of which fewest images are left and some are still wanted gives the next image. Images without objects
    count as a category. The same data and count give the same images; nothing is drawn by the order of ids.

    :param images: COCO's, with ``id``
    :param annotations: COCO's, with ``image_id`` and ``category_id``
    :param count: of images wanted; all if there are no more
    :return: in order of id
    """
    ids = sorted(image["id"] for image in images)
    if count >= len(ids):
        return ids
    categories: dict[int, set[int | None]] = {i: set() for i in ids}
    for annotation in annotations:
        categories[annotation["image_id"]].add(annotation["category_id"])
    holders: dict[int | None, list[int]] = {}
    for place in np.random.default_rng(0).permutation(len(ids)).tolist():
        for category in categories[ids[place]] or {None}:
            holders.setdefault(category, []).append(ids[place])
    wanted = {category: len(some) * count / len(ids) for category, some in holders.items()}
    left = {category: len(some) for category, some in holders.items()}
    picked: set[int] = set()
    while len(picked) < count:
        category = min(
            (c for c in holders if left[c]), key=lambda c: (wanted[c] < 0.5, left[c], -1 if c is None else c)
        )
        chosen = next(i for i in holders[category] if i not in picked)
        holders[category] = holders[category][holders[category].index(chosen) + 1 :]
        picked.add(chosen)
        for own in categories[chosen] or {None}:
            wanted[own] -= 1
            left[own] -= 1
    return sorted(picked)
