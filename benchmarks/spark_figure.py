"""The figure of ``benchmarks/spark.py``: of three crops the input, the output, its error and where the policy looks.

python -m benchmarks.spark_figure
"""

from pathlib import Path

import matplotlib as mpl
import numpy as np

from benchmarks.record import RESULTS
from benchmarks.spark import MAPS

mpl.use("agg")
from matplotlib import pyplot as plt

COLUMNS = ("input", "output", "error against the clean image", "weights of the policy")


def draw(kept: dict[str, np.ndarray], path: Path) -> None:
    """A row per crop.

    :param kept: "inputs", "outputs", "targets" (N, 1, H, W) and "maps" (N, grid, grid), as the benchmark keeps them
    """
    images = {name: kept[name].astype(float)[:, 0] for name in ("inputs", "outputs", "targets")}
    errors = np.abs(images["outputs"] - images["targets"])
    maps = kept["maps"]
    fig, axes = plt.subplots(len(maps), len(COLUMNS), figsize=(3 * len(COLUMNS), 3 * len(maps)), squeeze=False)
    for row, own in enumerate(axes):
        own[0].imshow(images["inputs"][row], cmap="gray", vmin=0, vmax=1)
        own[1].imshow(images["outputs"][row], cmap="gray", vmin=0, vmax=1)
        shown = own[2].imshow(errors[row], cmap="magma", vmin=0, vmax=errors.max())
        fig.colorbar(shown, ax=own[2], fraction=0.046)
        shown = own[3].imshow(maps[row], cmap="viridis", vmin=maps.min(), vmax=maps.max())
        fig.colorbar(shown, ax=own[3], fraction=0.046)
        for axis in own:
            axis.set_axis_off()
    for axis, title in zip(axes[0], COLUMNS, strict=True):
        axis.set_title(title)
    fig.tight_layout()
    fig.savefig(path, dpi=100)
    plt.close(fig)


def main() -> None:
    """Draw."""
    path = RESULTS / "spark_maps.png"
    with np.load(MAPS) as kept:
        draw(dict(kept), path)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
