"""``hsq report``."""

from pathlib import Path
from typing import Annotated

import tyro


def report(
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional],
    out: Path = Path("report.html"),
    dataset: str | None = None,
    splits: tuple[str, ...] | None = None,
    images: int = 64,
    shown: int = 6,
    json: bool = False,
) -> None:
    """Write what finished runs found as one HTML file, which opens without a network.

    It has the table, every plan that was tried with the front, why each layer has its choice, the training, test images
    on which teacher and student differ most, and how to repeat it all. Several runs are compared.

    Example: hsq report runs/photos --out photos.html
    Example: hsq report runs/dqn runs/ilp --dataset photos/ --out both.html

    :param runs: folders of finished searches or fine-tunings
    :param out: the HTML file
    :param dataset: where their data lie here; the places in their records if not given
    :param splits: names of the training, the search and the test split; those in their records if not given
    :param images: of the test split on which teacher and student are compared; 0 leaves that out
    :param shown: how many of these the page shows, those that differ most
    :param json: print {"report": FILE, "bytes": its size, "runs": [FOLDER, ...]}; all else goes to standard error
    """
    from agents.output import aside, print_json
    from agents.report.page import write_report

    with aside(json):
        size = write_report(runs, out, dataset, splits, images, shown)
    if json:
        print_json({"report": str(out), "bytes": size, "runs": [str(run) for run in runs]})
    else:
        print(f"wrote {out}, {size / 1e6:.2f} MB")
