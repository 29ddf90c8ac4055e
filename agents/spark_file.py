"""``spark.pt``: SPARK's policy beside the model that it helped to train."""

import io
from pathlib import Path

import torch

from detectors.errors import InputError
from hsq_env.distillation.spark import Spark


def spark_bytes(spark: Spark) -> bytes:
    """The policy, its learning and its random numbers."""
    content = io.BytesIO()
    torch.save(spark.state_dict(), content)
    return content.getvalue()


def load_spark(spark: Spark, path: Path) -> None:
    """Go on from a file; no code in it is run.

    :raises InputError: if it is none
    """
    try:
        spark.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # whatever a foreign file makes torch say
        raise InputError(
            f"{path} is not a SPARK policy ({type(error).__name__}): give the spark.pt of a run."
        ) from error
