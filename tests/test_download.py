"""COCO from a server of this machine's: whole, in pieces, damaged, on a full disk."""

import hashlib
import io
import json
import shutil
import zipfile
from collections import namedtuple
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from PIL import Image

from agents.cli import main
from detectors import download
from detectors.download import COCO, Archive, fetch_coco
from detectors.errors import InputError
from detectors.folder import load_folder

Usage = namedtuple("Usage", "total used free")


def archive_of(path: str, files: dict[str, bytes], wanted: tuple[str, ...]) -> tuple[Archive, bytes]:
    """A zip and what is known of it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as content:
        for name, data in files.items():
            content.writestr(name, data)
    data = buffer.getvalue()
    size = sum(map(len, files.values()))
    return Archive(path, len(data), hashlib.md5(data, usedforsecurity=False).hexdigest(), size, wanted), data


def picture(value: int) -> bytes:
    """A PNG of 20 x 30 pixels."""
    buffer = io.BytesIO()
    Image.new("RGB", (30, 20), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def annotations_of(split: str) -> bytes:
    """Of two images with a box each."""
    images = [{"id": i, "file_name": f"{split}_{i}.png", "width": 30, "height": 20} for i in (1, 2)]
    boxes = [{"id": i, "image_id": i, "category_id": 1, "bbox": [1, 2, 10, 10], "iscrowd": 0} for i in (1, 2)]
    return json.dumps({"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "person"}]}).encode()


class Server:
    """Serves bytes by path, and can be told to misbehave."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[tuple[str, str | None]] = []  # path and range of every request
        self.breaks_after: int | None = None  # bytes, once
        self.knows_ranges = True
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                wanted = self.headers["Range"]
                outer.asked.append((self.path, wanted))
                data = outer.files.get(self.path)
                if data is None:
                    self.send_error(404)
                    return
                start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and outer.knows_ranges else 0
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(data) - start))
                self.end_headers()
                end = len(data) if outer.breaks_after is None else start + outer.breaks_after
                outer.breaks_after = None
                self.wfile.write(data[start:end])

            def log_message(self, *arguments: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_address[1]}"
        Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


@pytest.fixture
def coco(server: Server) -> dict[str, Any]:
    """Arguments for a COCO of four images."""
    boxes, data = archive_of(
        "annotations/boxes.zip",
        {
            **{f"annotations/instances_{split}.json": annotations_of(split) for split in COCO},
            "annotations/captions_val2017.json": b"[]",
        },
        tuple(f"annotations/instances_{split}.json" for split in COCO),
    )
    server.files["/annotations/boxes.zip"] = data
    archives = {}
    for value, split in enumerate(COCO):
        pictures = {f"{split}/{split}_{i}.png": picture(10 * value + i) for i in (1, 2)}
        archives[split], server.files[f"/zips/{split}.zip"] = archive_of(f"zips/{split}.zip", pictures, (f"{split}/",))
    return {"server": server.address, "archives": archives, "annotations": boxes}


def test_a_folder_that_loads(server: Server, coco: dict[str, Any], tmp_path: Path) -> None:
    out = fetch_coco(tmp_path / "coco", **coco)
    assert sorted(p.name for p in out.iterdir() if not p.name.startswith(".")) == [
        "annotations",
        "train2017",
        "val2017",
    ]
    assert not (out / "annotations" / "captions_val2017.json").exists()
    splits = load_folder(out, ["person"], 20, 40, ["train2017", "val2017"])
    assert {name: len(split) for name, split in splits.items()} == {"train": 1, "search": 1, "test": 2}
    assert splits["test"].pixels(1)[0, 0, 0] == 1
    asked = len(server.asked)
    assert asked == 3
    fetch_coco(out, **coco)
    assert len(server.asked) == asked  # nothing is fetched twice


def test_it_goes_on_where_it_stopped(server: Server, coco: dict[str, Any], tmp_path: Path) -> None:
    server.breaks_after = 50
    with pytest.raises(InputError, match=r"boxes.zip (ended early, at 50 bytes|cannot be fetched).*call the command"):
        fetch_coco(tmp_path, ["val2017"], **coco)
    assert (tmp_path / "boxes.zip.partial").stat().st_size == 50
    fetch_coco(tmp_path, ["val2017"], **coco)
    assert [wanted for path, wanted in server.asked if "boxes" in path] == [None, "bytes=50-"]
    assert (tmp_path / "val2017" / "val2017_2.png").read_bytes() == picture(2)
    assert not (tmp_path / "train2017").exists()


def test_a_server_without_ranges_begins_anew(server: Server, coco: dict[str, Any], tmp_path: Path) -> None:
    server.breaks_after = 50
    with pytest.raises(InputError):
        fetch_coco(tmp_path, ["val2017"], **coco)
    server.knows_ranges = False
    fetch_coco(tmp_path, ["val2017"], **coco)
    assert json.loads((tmp_path / "annotations" / "instances_val2017.json").read_text())["images"]


def test_what_is_not_the_file_is_thrown_away(server: Server, coco: dict[str, Any], tmp_path: Path) -> None:
    good = server.files["/annotations/boxes.zip"]
    server.files["/annotations/boxes.zip"] = good[:-1] + bytes([good[-1] ^ 1])
    with pytest.raises(InputError, match=r"boxes.zip is not the file that it should be \(its MD5 differs\)"):
        fetch_coco(tmp_path, ["val2017"], **coco)
    assert list(tmp_path.iterdir()) == []
    server.files["/annotations/boxes.zip"] = good
    fetch_coco(tmp_path, ["val2017"], **coco)


def test_a_missing_file_is_named(server: Server, coco: dict[str, Any], tmp_path: Path) -> None:
    del server.files["/zips/val2017.zip"]
    with pytest.raises(InputError, match=r"/zips/val2017.zip cannot be fetched \(HTTP 404\)"):
        fetch_coco(tmp_path, **coco)


def test_nobody_there(coco: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"boxes.zip cannot be fetched \(.*\): call the command again to go on"):
        fetch_coco(tmp_path, **{**coco, "server": "http://127.0.0.1:1"})


def test_a_disk_too_small_is_told_first(
    server: Server, coco: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10, 9, download.ROOM))
    with pytest.raises(InputError, match=r"has 0.3 GB free and COCO needs 0.3 GB: give another folder or fewer splits"):
        fetch_coco(tmp_path, **coco)
    assert server.asked == [] and list(tmp_path.iterdir()) == []


def test_room_for_all_of_coco(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last archive lies beside everything unpacked: 19.3 GB and 20.8 GB."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, 40_000_000_000))
    with pytest.raises(InputError, match=r"40.0 GB free and COCO needs 40.4 GB"):
        fetch_coco(tmp_path)


def test_unpacking_goes_on(server: Server, coco: dict[str, Any], tmp_path: Path) -> None:
    fetch_coco(tmp_path, ["val2017"], **coco)
    (tmp_path / ".val2017.zip.done").unlink()
    (tmp_path / "val2017.zip").write_bytes(server.files["/zips/val2017.zip"])
    (tmp_path / "val2017" / "val2017_1.png").write_bytes(b"half")
    (tmp_path / "val2017" / "val2017_2.png").unlink()
    asked = len(server.asked)
    fetch_coco(tmp_path, ["val2017"], **coco)
    assert [(tmp_path / "val2017" / f"val2017_{i}.png").read_bytes() for i in (1, 2)] == [picture(1), picture(2)]
    assert len(server.asked) == asked and not (tmp_path / "val2017.zip").exists()


def test_names_that_lead_out_of_the_folder_are_refused(server: Server, coco: dict[str, Any], tmp_path: Path) -> None:
    evil, data = archive_of("zips/val2017.zip", {"val2017/../../evil.png": b"x"}, ("val2017/",))
    server.files["/zips/val2017.zip"] = data
    with pytest.raises(InputError, match=r"names the file .*evil.png, outside of"):
        fetch_coco(tmp_path / "coco", ["val2017"], **{**coco, "archives": {"val2017": evil}})
    assert not (tmp_path / "evil.png").exists()


def test_a_part_of_the_images(server: Server, coco: dict[str, Any], tmp_path: Path) -> None:
    """Annotations and files of as many images; asked for more later, another folder is needed."""
    names = [f"val2017_{i}.png" for i in range(1, 9)]
    images = [{"id": i, "file_name": name, "width": 30, "height": 20} for i, name in enumerate(names, start=1)]
    boxes = [
        {"id": i, "image_id": i, "category_id": 1 + (i > 6), "bbox": [1, 2, 10, 10], "iscrowd": 0} for i in range(1, 9)
    ]
    categories = [{"id": 1, "name": "person"}, {"id": 2, "name": "rare"}]
    content = json.dumps({"images": images, "annotations": boxes, "categories": categories}).encode()
    made, server.files["/annotations/boxes.zip"] = archive_of(
        "annotations/boxes.zip",
        {"annotations/instances_val2017.json": content},
        ("annotations/instances_val2017.json",),
    )
    many, server.files["/zips/val2017.zip"] = archive_of(
        "zips/val2017.zip", {f"val2017/{name}": picture(1) for name in names}, ("val2017/",)
    )
    given = {**coco, "annotations": made, "archives": {"val2017": many}}
    fetch_coco(tmp_path, ["val2017"], images=4, **given)
    for other, asked in ((None, "all"), (5, "5")):
        with pytest.raises(InputError, match=f"has 4 images of val2017 and not {asked}: give another folder"):
            fetch_coco(tmp_path, ["val2017"], images=other, **given)
    data = json.loads((tmp_path / "annotations" / "instances_val2017.json").read_text())
    assert len(data["images"]) == 4 and sorted(a["category_id"] for a in data["annotations"]) == [1, 1, 1, 2]
    on_disk = sorted(p.name for p in (tmp_path / "val2017").iterdir())
    assert on_disk == sorted(image["file_name"] for image in data["images"])
    (tmp_path / ".val2017.zip.done").unlink()
    fetch_coco(tmp_path, ["val2017"], images=4, **given)  # goes on with the same images
    assert sorted(p.name for p in (tmp_path / "val2017").iterdir()) == on_disk
    (tmp_path / ".val2017.zip.done").unlink()
    with pytest.raises(InputError, match="has 4 images of val2017 and not 6: give another folder"):
        fetch_coco(tmp_path, ["val2017"], images=6, **given)
    with pytest.raises(InputError, match="1 images are too few"):
        fetch_coco(tmp_path, ["val2017"], images=1, **given)


def test_the_command_refuses_other_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["data", "coco", "--out", str(tmp_path / "coco"), "--splits", "test2017"])
    assert (
        exit_.value.code == 2
        and "no split 'test2017' to fetch: known are val2017, train2017" in capsys.readouterr().err
    )
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as exit_:
        main(["data", "coco", "--out", str(tmp_path / "file")])
    assert exit_.value.code == 2 and "cannot be written to" in capsys.readouterr().err
