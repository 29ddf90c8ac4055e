"""What ``hsq`` finds on this machine; nothing that is missing or broken stops it from saying so.

Only the standard library is imported before each thing is looked at.
"""

import importlib
import json as jsons
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from detectors.cache import cache_folder

DISTRIBUTION = "hsq-env"
OK, NOTE, WRONG = "ok", "note", "wrong"
# Others are named as their package is.
MODULES = {"pillow": "PIL", "scikit-image": "skimage", "ray[tune]": "ray", "mlflow-skinny": "mlflow"}
USES = {  # of packages that only some commands need
    "optuna": "--algo tpe and nsga2, and hsq sweep",
    "tensorboard": "the learning curves of hsq search",
    "scikit-image": "restorers on the photographs that come with it",
    "onnx": "hsq export, bench and latency",
    "onnxruntime": "hsq export, bench and latency",
    "ray": "hsq sweep, and --ray of hsq search",
    "wandb": "--track wandb of hsq search",
    "mlflow-skinny": "--track mlflow of hsq search",
}
OPTIONAL = {"ray": "ray", "wandb": "wandb", "mlflow-skinny": "mlflow"}  # package and extra
REINSTALL = "install it as the README says: make setup, or pip install -c constraints.txt -e ."
REPEATS = 7  # of what is timed, of which the quickest counts
WORTH_IT = 1.2  # times as fast
LITTLE_SPACE = 2e9  # bytes: the generated data, tables and one detector's COCO weights


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    :param part: packages, threads, devices, cache, teachers
    :param state: "ok"; "note": it works and could be better, or some command misses it; "wrong": most commands fail
    :param remedy: what to do about it
    """

    part: str
    name: str
    state: str
    found: str
    remedy: str = ""


def doctor(json: bool = False) -> None:
    """Say what is installed, which threads and devices will be used, and what is missing for which command.

    Exit code 0, or 1 if something is wrong that commands without extras need. Each finding comes with what to do.

    Example: hsq doctor
    Example: hsq doctor --json | jq '.findings[] | select(.state != "ok")'

    :param json: print {"version", "ok", "findings": [{"part", "name", "state" (ok, note or wrong), "found", "remedy"}]}
    """
    findings = examine()
    fine = all(finding.state != WRONG for finding in findings)
    if json:
        print(jsons.dumps({"version": version(), "ok": fine, "findings": [asdict(finding) for finding in findings]}))
    else:
        print("\n".join(_lines(findings)))
    if not fine:
        raise SystemExit(1)


def _lines(findings: list[Finding]) -> Iterator[str]:
    """For a person."""
    yield f"hsq {version()}"
    part = ""
    for finding in findings:
        if finding.part != part:
            part = finding.part
            yield f"\n{part}"
        yield f"  {finding.state:<5}  {finding.name}: {finding.found}"
        if finding.remedy:
            yield f"         -> {finding.remedy}"
    wrong, notes = (sum(finding.state == state for finding in findings) for state in (WRONG, NOTE))
    verdict = f"{wrong} wrong: see above" if wrong else "everything that is needed is there"
    yield f"\n{verdict}" + (f"; {notes} to note" if notes else "")


def version() -> str:
    """The installed package's, or that of the folder in which it lies."""
    try:
        return distribution(DISTRIBUTION).version
    except PackageNotFoundError:
        return "of a folder that was not installed"


def examine() -> list[Finding]:
    """All findings, part by part; a part that cannot be examined is a finding too."""
    findings: list[Finding] = []
    for name, part in PARTS.items():
        try:
            findings += part()
        except Exception as error:  # whatever is broken, the rest is to be said
            findings.append(Finding(name, name, WRONG, _told(error), REINSTALL))
    return findings


def _told(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


# ---- packages


def packages() -> Iterator[Finding]:
    """Python, what setup.cfg asks for, and the extras."""
    yield _python()
    asked = _asked()
    if not asked:
        yield Finding("packages", DISTRIBUTION, NOTE, "is not installed, so no versions are asked for", REINSTALL)
    for name, wanted in asked.items():
        if name not in OPTIONAL:
            yield _package(name, wanted, needed=True)
    for name in OPTIONAL:
        yield _package(name, asked.get(name, ""), needed=False)


def _python() -> Finding:
    found = platform.python_version()
    try:
        wanted = distribution(DISTRIBUTION).metadata["Requires-Python"] or ""
    except PackageNotFoundError:
        wanted = ""
    fits = _fits(found, wanted)
    remedy = "" if fits else "set hsq up with another Python"
    return Finding("packages", "python", OK if fits else WRONG, f"{found}{_range(wanted)}", remedy)


def _asked() -> dict[str, str]:
    """Versions asked for by package: what is required, and what of the extras users may need."""
    try:
        lines = distribution(DISTRIBUTION).requires or []
    except PackageNotFoundError:
        return {}
    found = {}
    for line in lines:
        requirement, _, marker = line.partition(";")
        named = re.match(r"([\w.-]+)(\[[^]]*\])?\s*(.*)", requirement.strip())
        if named and ("extra" not in marker or named[1] in OPTIONAL):
            found[named[1]] = named[3].strip(" ()")
    return found


def _package(name: str, wanted: str, needed: bool) -> Finding:
    """Whether a package is there, in a version that is asked for, and can be imported."""
    missed = f"; {USES[name]} need it" if name in USES else ""
    remedy = REINSTALL if needed else f"pip install -c constraints.txt -e '.[{OPTIONAL[name]}]'"
    state = WRONG if needed else NOTE
    try:
        found = distribution(name).version
    except PackageNotFoundError:
        return Finding("packages", name, state, f"not installed{_range(wanted)}{missed}", remedy)
    if not _fits(found, wanted):
        return Finding("packages", name, state, f"{found}{_range(wanted)}{missed}", remedy)
    try:
        importlib.import_module(MODULES.get(name, name.replace("-", "_")))
    except (Exception, SystemExit) as error:  # a broken package may say anything
        return Finding("packages", name, state, f"{found} cannot be imported ({_told(error)}){missed}", remedy)
    return Finding("packages", name, OK, f"{found}{_range(wanted)}")


def _range(wanted: str) -> str:
    return f" (asked {wanted})" if wanted else ""


def _fits(found: str, wanted: str) -> bool:
    """Whether a version lies in a range; without the package that compares them nothing is said against it."""
    try:
        from packaging.specifiers import SpecifierSet
    except ImportError:
        return True
    return SpecifierSet(wanted).contains(found, prereleases=True)


# ---- threads and devices


def threads() -> Iterator[Finding]:
    """Cores that may be used, and what OpenMP and torch make of them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield Finding("threads", "cores", OK, f"{cores} for this process, of {os.cpu_count()}")
    given = os.environ.get("OMP_NUM_THREADS", "")
    many = given.isdigit() and int(given) > cores
    remedy = f"give {cores} or less: threads that wait for a core slow everything down" if many else ""
    yield Finding("threads", "OMP_NUM_THREADS", NOTE if many else OK, given or "not set", remedy)
    policy = os.environ.get("OMP_WAIT_POLICY", "")
    passive = policy.upper() == "PASSIVE"
    remedy = "" if passive else "set it to PASSIVE: threads that spin slow torch down many times beside other work"
    yield Finding("threads", "OMP_WAIT_POLICY", OK if passive else NOTE, policy or "not set", remedy)
    torch = importlib.import_module("torch")
    yield Finding("threads", "torch", OK, f"{torch.get_num_threads()} threads")


def devices() -> Iterator[Finding]:
    """Where networks run, and whether --bfloat16 is worth it there."""
    torch = importlib.import_module("torch")
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(number)
            used = (
                "used" if number == torch.cuda.current_device() else "not used: give others with CUDA_VISIBLE_DEVICES"
            )
            found = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, {used}"
            yield Finding("devices", f"cuda:{number}", OK, found)
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
        yield _bfloat16(fast, "fast" if fast else "emulated")
        return
    yield Finding("devices", "cpu", OK, f"{_processor()}; no GPU that this torch can use")
    if shutil.which("nvidia-smi") or Path("/dev/nvidia0").exists():
        kind = torch.version.cuda or "none: it is built for CPUs"
        remedy = "install a torch for this driver's CUDA, and see whether nvidia-smi answers"
        yield Finding("devices", "cuda", NOTE, f"there seems to be an NVIDIA GPU; torch's CUDA is {kind}", remedy)
    times = _times_faster_in_bfloat16()
    yield _bfloat16(round(times, 1) >= WORTH_IT, f"{times:.1f} times as fast as float32, measured")


def _bfloat16(fast: bool, found: str) -> Finding:
    helps = "--bfloat16 helps full-width networks" if fast else "leave out --bfloat16"
    return Finding("devices", "bfloat16", OK, f"{found}: {helps}")


def _times_faster_in_bfloat16() -> float:
    """How much faster this processor takes a convolution of a full-width network forwards and back.

    No flag of a processor tells: with AVX-512 some are faster, and others slower.
    """
    torch = importlib.import_module("torch")
    layer = torch.nn.Conv2d(128, 128, 3, padding=1).to(memory_format=torch.channels_last)
    images = torch.rand(4, 128, 28, 28).to(memory_format=torch.channels_last).requires_grad_()
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(REPEATS):
        for reduced, taken in seconds.items():
            started = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=reduced):
                made = layer(images)
            made.float().sum().backward()
            taken.append(time.perf_counter() - started)
    return min(seconds[False]) / min(seconds[True])


def _processor() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpuinfo(key: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key) and ":" in line), "")


# ---- files


def cache() -> Iterator[Finding]:
    """Where generated data, measured tables and downloaded weights are kept."""
    folder = cache_folder()
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    found = f"{sum(sizes) / 1e6:,.0f} MB in {len(sizes)} files" if folder.is_dir() else "not there yet"
    existing = next((place for place in (folder, *folder.absolute().parents) if place.exists()), Path("/"))
    remedy = "set HSQ_CACHE to a folder that you can write to"
    try:
        with tempfile.TemporaryFile(dir=existing):
            yield Finding("cache", str(folder), OK, found)
    except OSError as error:
        yield Finding("cache", str(folder), WRONG, f"{found}, cannot be written ({error.strerror})", remedy)
    free = shutil.disk_usage(existing).free
    little = free < LITTLE_SPACE
    remedy = "free some space, or set HSQ_CACHE to a folder on another disk" if little else ""
    yield Finding("cache", "free on its disk", NOTE if little else OK, f"{free / 1e9:.1f} GB", remedy)


def teachers() -> Iterator[Finding]:
    """The teachers that come with the packages."""
    detectors: Any = importlib.import_module("detectors.teacher")
    restorers: Any = importlib.import_module("restorers.teacher")
    yield _teacher("detector", detectors.SHIPPED_TEACHER, detectors.load_teacher)
    for name, path in restorers.SHIPPED_TEACHERS.items():
        yield _teacher(name, path, restorers.load_teacher)


def _teacher(name: str, path: Path, load: Callable[[Path], object]) -> Finding:
    try:
        load(path)
    except Exception as error:  # a damaged file may make anything of torch
        return Finding("teachers", name, WRONG, _told(error), REINSTALL)
    return Finding("teachers", name, OK, f"{path.name}, {path.stat().st_size / 1e6:.1f} MB")


PARTS: dict[str, Callable[[], Iterator[Finding]]] = {
    "packages": packages,
    "threads": threads,
    "devices": devices,
    "cache": cache,
    "teachers": teachers,
}
