"""COCO 2017 into a folder: archives that go on where they stopped, checked, unpacked file by file."""

import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from detectors.errors import InputError
from detectors.files import write_atomically
from detectors.progress import each, work
from detectors.subset import stratified

CHUNK = 1 << 20  # bytes
TIMEOUT = 60.0  # seconds without a byte
SERVER = "http://images.cocodataset.org"
ROOM = 256 << 20  # bytes that are to stay free
WHOLE = "images_before_subset"  # key in annotations of which a part was kept: how many images there were


@dataclass(frozen=True)
class Archive:
    """A file to be fetched.

    :param path: on the server
    :param size: bytes
    :param md5: of the whole, hexadecimal
    :param unpacked: bytes of what is in it, at most
    :param wanted: beginning of the names in it that are unpacked
    """

    path: str
    size: int
    md5: str
    unpacked: int
    wanted: tuple[str, ...]

    @property
    def name(self) -> str:
        """Without folders."""
        return PurePosixPath(self.path).name


# http://cocodataset.org/#download; the annotations' archive has captions and keypoints too, which nobody here reads
ANNOTATIONS = Archive(
    "annotations/annotations_trainval2017.zip",
    252_907_541,
    "f4bbac642086de4f52a3fdda2de5fa2c",
    500_000_000,
    ("annotations/instances_train2017.json", "annotations/instances_val2017.json"),
)
COCO: dict[str, Archive] = {
    "val2017": Archive("zips/val2017.zip", 815_585_330, "442b8da7639aecaf257c1dceb8ba8c80", 820_000_000, ("val2017/",)),
    "train2017": Archive(
        "zips/train2017.zip", 19_336_861_798, "cced6f7f71b7629ddf16f17bbcfab6b2", 19_500_000_000, ("train2017/",)
    ),
}


def fetch_coco(
    out: str | Path,
    splits: Sequence[str] = ("val2017", "train2017"),
    server: str = SERVER,
    archives: dict[str, Archive] | None = None,
    annotations: Archive = ANNOTATIONS,
    images: int | None = None,
) -> Path:
    """Fetch COCO 2017's images and boxes; called again, it goes on where it stopped.

    :param out: becomes a COCO-layout folder; archives lie in it until they are unpacked
    :param splits: of "val2017" and "train2017"
    :param server: where the archives are
    :param archives: images by split; COCO's when None
    :param annotations: of all splits
    :param images: how many of each split to keep, in which every category has its share; all when None
    :return: ``out``
    :raises InputError: if the disk is too small, the server does not answer, or an archive is not what it should be;
        what was fetched stays
    """
    out, known = Path(out), COCO if archives is None else archives
    if images is not None and images < 2:
        raise InputError(f"{images} images are too few for a split: give 2 or more (--images).")
    unknown = [split for split in splits if split not in known]
    if unknown or not splits:
        raise InputError(f"There is no split '{unknown[0] if unknown else ''}' to fetch: known are {', '.join(known)}.")
    wanted = [annotations, *(known[split] for split in dict.fromkeys(splits))]
    left = [archive for archive in wanted if not _marker(out, archive).exists()]
    for archive in wanted[1:]:
        if archive not in left:
            _check_part(out, archive, images)
    try:
        out.mkdir(parents=True, exist_ok=True)
        _check_room(out, left)
        for archive in left:
            path = out / archive.name
            if not path.exists():
                _fetch(f"{server}/{archive.path}", path, archive)
            kept = None if images is None or archive is annotations else _part(out, archive, images)
            _unpack(path, out, archive, kept)
            _marker(out, archive).touch()
            path.unlink()
    except OSError as error:
        raise InputError(f"COCO cannot be written to {out} ({error.strerror or error}): free or change it.") from error
    return out


def _marker(out: Path, archive: Archive) -> Path:
    """Stands where an archive was unpacked to the last file."""
    return out / f".{archive.name}.done"


def _partial(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


def _check_room(out: Path, left: Sequence[Archive]) -> None:
    """Refuse a disk that would fill: archives go one after the other once they are unpacked."""
    unpacked, most = 0, 0
    for archive in left:
        on_disk = [p.stat().st_size for p in (out / archive.name, _partial(out / archive.name)) if p.exists()]
        most = max(most, unpacked + archive.size - sum(on_disk) + archive.unpacked)
        unpacked += archive.unpacked
    free = shutil.disk_usage(out).free
    if left and most + ROOM > free:
        raise InputError(
            f"{out} has {free / 1e9:.1f} GB free and COCO needs {(most + ROOM) / 1e9:.1f} GB: give another folder or "
            "fewer splits (--splits)."
        )


def _fetch(url: str, path: Path, archive: Archive) -> None:
    """Fetch what is missing of a file, check all of it, and give it its name."""
    partial = _partial(path)
    have = partial.stat().st_size if partial.exists() else 0
    if have > archive.size:
        partial.unlink()
        have = 0
    if have < archive.size:
        _append(url, partial, have, archive)
    if partial.stat().st_size < archive.size:
        raise InputError(f"{url} ended early, at {partial.stat().st_size:,} bytes: call the command again to go on.")
    if _md5(partial) != archive.md5:
        partial.unlink()
        raise InputError(f"{url} is not the file that it should be (its MD5 differs): call the command again.")
    partial.replace(path)


def _append(url: str, partial: Path, have: int, archive: Archive) -> None:
    request = Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urlopen(request, timeout=TIMEOUT) as answer:
            goes_on = answer.status == 206
            start = have if goes_on else 0  # a server that knows no ranges begins anew
            fetching = work(f"fetching {archive.name}", archive.size, start, "B")
            with fetching as going, open(partial, "ab" if goes_on else "wb") as file:
                while chunk := answer.read(CHUNK):
                    file.write(chunk)
                    going.advance(len(chunk))
    except HTTPError as error:
        raise InputError(f"{url} cannot be fetched (HTTP {error.code}): check the address and call again.") from error
    except (URLError, TimeoutError, ConnectionError, HTTPException) as error:
        raise InputError(f"{url} cannot be fetched ({error}): call the command again to go on.") from error


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with work(f"checking {path.name}", path.stat().st_size, unit="B") as going, open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            going.advance(len(chunk))
    return digest.hexdigest()


def _annotations_of(out: Path, archive: Archive) -> Path:
    return out / "annotations" / f"instances_{archive.wanted[0].rstrip('/')}.json"


def _check_part(out: Path, archive: Archive, images: int | None) -> None:
    """Refuse to call a folder finished that holds another part of a split than is asked for."""
    data = json.loads(_annotations_of(out, archive).read_text())
    found, whole = len(data["images"]), data.get(WHOLE, len(data["images"]))
    if found != (whole if images is None else min(images, whole)):
        asked = "all" if images is None else str(images)
        split = archive.wanted[0].rstrip("/")
        raise InputError(f"{out} has {found} images of {split} and not {asked}: give another folder.")


def _part(out: Path, archive: Archive, images: int) -> set[str]:
    """Leave so many images in the annotations of a split; the files that they name.

    :raises InputError: if fewer are left there than wanted, by another call
    """
    split = archive.wanted[0].rstrip("/")
    path = _annotations_of(out, archive)
    data = json.loads(path.read_text())
    whole = data.get(WHOLE, len(data["images"]))
    if len(data["images"]) < min(images, whole):
        _check_part(out, archive, images)
    chosen = set(stratified(data["images"], data["annotations"], images))
    data["images"] = [image for image in data["images"] if image["id"] in chosen]
    data["annotations"] = [a for a in data["annotations"] if a["image_id"] in chosen]
    write_atomically(path, json.dumps({**data, WHOLE: whole}).encode())
    return {f"{split}/{image['file_name']}" for image in data["images"]}


def _unpack(path: Path, out: Path, archive: Archive, kept: set[str] | None = None) -> None:
    """Write what is wanted of an archive; files that are there already in full stay.

    :param kept: names of the files to write; all that the archive's description wants when None
    """
    try:
        with zipfile.ZipFile(path) as content:
            entries = [e for e in content.infolist() if not e.is_dir() and e.filename.startswith(archive.wanted)]
            entries = [e for e in entries if kept is None or e.filename in kept]
            for entry in each(entries, f"unpacking {path.name}, file"):
                _unpack_entry(content, entry, out)
    except (zipfile.BadZipFile, EOFError) as error:
        raise InputError(f"{path} is damaged ({error}): remove it and call the command again.") from error


def _unpack_entry(content: zipfile.ZipFile, entry: zipfile.ZipInfo, out: Path) -> None:
    target = (out / entry.filename).resolve()
    if not target.is_relative_to(out.resolve()):
        raise InputError(f"An archive names the file {entry.filename}, outside of {out}: do not use it.")
    if target.exists() and target.stat().st_size == entry.file_size:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.partial")
    try:
        with content.open(entry) as source, open(beside, "wb") as file:
            shutil.copyfileobj(source, file, CHUNK)
        os.replace(beside, target)
    finally:
        beside.unlink(missing_ok=True)
