"""``peers.json``: every peer's figures beside HSQ's in no more bytes.

python -m benchmarks.peers.summary
"""

from typing import Any

from benchmarks.peers.run import PEERS
from benchmarks.record import write_result
from benchmarks.table1 import BENCHES, PEER_FIGURES, SEARCH, lines, methods_of, peers_of


def beside(peer: dict[str, Any], methods: dict[str, Any]) -> dict[str, Any]:
    """HSQ's largest files that are, for every seed, no larger than a peer's written or nominal bytes.

    :param methods: of ``benchmarks.table1.methods_of``
    """
    most = min(peer["bytes"], peer["nominal_bytes"])
    fitting = [row for name, row in methods.items() if name.startswith("hsq-") and max(row["seed_bytes"]) <= most]
    if not fitting:
        return {"hsq_map": None, "hsq_ratio": None, "hsq_seeds": []}
    largest = max(fitting, key=lambda row: row["bytes"])
    return {"hsq_map": largest["map"], "hsq_ratio": largest["ratio"], "hsq_seeds": largest["seeds"]}


def summary(data: str) -> dict[str, Any]:
    """Per peer; those that are not measured are missing, HSQ's figures are None where it is not."""
    searches = [line for line in lines(data) if line["kind"] == SEARCH]
    found: dict[str, Any] = {}
    for row in peers_of(data):
        same = [line for line in searches if line["teacher_sha256"] == row["teacher_sha256"]]
        figures = {name: row[name] for name in (*PEER_FIGURES, "teacher_map", "detector", "seconds")}
        found[row["peer"]] = {**figures, **beside(row, methods_of(same))}
    return {name: found[name] for name in PEERS if name in found}


def write_summary() -> None:
    """From the lines of both benchmarks."""
    path = write_result("peers", {data: made for data in BENCHES if (made := summary(data))})
    print(f"wrote {path}")


if __name__ == "__main__":
    write_summary()
