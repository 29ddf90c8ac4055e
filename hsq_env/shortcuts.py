"""What a step may reuse. With every switch off a step is computed as it is defined: the rest is tested against that."""

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Shortcuts:
    """Each switch saves work and changes no reward.

    :param in_place: change the student itself; off, every step begins with a copy of it
    :param variants: what pruning and scale search make of a layer that no fine-tuning has touched is made once
    :param resume: forward passes start at the block that changed; off, at the images
    :param branches: stages behind that block that do not depend on it (a detector's other tower) run once; needs
        ``resume``
    :param teacher: the teacher runs once per image; off, it runs again for every loss and every accuracy
    :param block_gradient: the backward pass stops at the block that is trained; off, it goes back to the first layer
    :param prefixes: choices that were made before in the same order are looked up
    :param metric: a task's quicker form of the metric is used where it has one (see ``hsq_env.task.QuickMetric``); for
        detectors its mAP is the same within 1e-15, all else is the same bit for bit
    """

    in_place: bool = True
    variants: bool = True
    resume: bool = True
    branches: bool = True
    teacher: bool = True
    block_gradient: bool = True
    prefixes: bool = True
    metric: bool = True

    @classmethod
    def none(cls) -> "Shortcuts":
        """All off: the reference path.

        >>> any(vars(Shortcuts.none()).values())
        False
        """
        return cls(**dict.fromkeys(SWITCHES, False))


SWITCHES = tuple(field.name for field in fields(Shortcuts))
