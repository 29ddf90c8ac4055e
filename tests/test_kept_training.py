"""A long fine-tuning that was interrupted."""

from pathlib import Path
from typing import Any

import pytest
from test_resume import KilledError
from tiny_task import TinyTask

from hsq_env.choices import Choice, Plan
from hsq_env.compensation import apply_plan
from hsq_env.file import student_bytes
from hsq_env.finetuning import LearningRates
from hsq_env.kept_training import KeptTraining
from hsq_env.long_finetuning import finetune_all
from hsq_env.student import Student


@pytest.mark.parametrize("frozen_share", [0.0, 0.25, 0.7])  # interrupted before and after codes are frozen
def test_a_long_fine_tuning_goes_on(tiny: TinyTask, tmp_path: Path, infos: Any, frozen_share: float) -> None:
    plan = Plan(tuple(info.name for info in infos), (Choice(4, 0.0),) * len(infos))

    taken: list[int] = []

    def trained(kept: KeptTraining | None, until: int | None = None) -> bytes:
        taken.clear()

        def on_step(step: int) -> None:
            taken.append(step)
            if step == until:
                raise KilledError

        student = Student(tiny, infos)
        apply_plan(student, plan)
        rates = LearningRates(weights=0.006, scales=0.02, biases=6e-4)
        finetune_all(student, 9, rates=rates, on_step=on_step, pace=1.0, kept=kept, frozen_share=frozen_share)
        return student_bytes(student)

    through, file = trained(None), tmp_path / "training"
    every = list(taken)
    for until in (3, 7):
        with pytest.raises(KilledError):
            trained(KeptTraining(file, 0.0), until)
        assert taken == every[0 if until == 3 else 3 : until + 1]
    assert trained(KeptTraining(file, 0.0)) == through
    assert taken == every[7:]
    assert trained(KeptTraining(file, 0.0)) == through  # interrupted after its last step
    assert taken == []
    file.write_bytes(file.read_bytes()[:-100])  # torn: from the beginning
    assert trained(KeptTraining(file, 0.0)) == through
    assert taken == every and len(every) == 9
