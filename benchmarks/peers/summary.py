"""``peers.json``: every peer's figures beside HSQ's in no more bytes.

python -m benchmarks.peers.summary
"""

from pathlib import Path
from typing import Any

from benchmarks.peers.run import PEERS
from benchmarks.record import write_result
from benchmarks.table1 import BENCHES, PEER_FIGURES, SEARCH, lines, methods_of, peers_of


def beside(peer: dict[str, Any], methods: dict[str, Any]) -> dict[str, Any]:
    """HSQ's largest file that is no larger than a peer's, the smaller of written and nominal bytes.

    :param methods: of ``benchmarks.table1.methods_of``
    """
    most = min(peer["bytes"], peer["nominal_bytes"])
    fitting = [row for name, row in methods.items() if name.startswith("hsq-") and row["bytes"] <= most]
    if not fitting:
        return {"hsq_map": None, "hsq_ratio": None, "hsq_seeds": []}
    largest = max(fitting, key=lambda row: row["bytes"])
    return {"hsq_map": largest["map"], "hsq_ratio": largest["ratio"], "hsq_seeds": largest["seeds"]}


def summary(data: str) -> dict[str, Any]:
    """Per peer; those that are not measured are missing."""
    found: dict[str, Any] = {}
    rows = lines(data)
    for detector in dict.fromkeys(row["detector"] for row in rows):
        methods = methods_of([row for row in rows if row["detector"] == detector and row["kind"] == SEARCH])
        for row in peers_of(data, detector):
            figures = {name: row[name] for name in (*PEER_FIGURES, "teacher_map", "seconds")}
            found[row["peer"]] = {"detector": detector, **figures, **beside(row, methods)}
    return {name: found[name] for name in PEERS if name in found}


def write_summary() -> Path:
    """From the lines of both benchmarks."""
    return write_result("peers", {data: made for data in BENCHES if (made := summary(data))})


if __name__ == "__main__":
    print(f"wrote {write_summary()}")
