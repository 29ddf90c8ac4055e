"""Where generated and measured things that can be made again are kept."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """``$HSQ_CACHE`` or ``~/.cache/hsq``."""
    return Path(os.environ.get("HSQ_CACHE") or Path.home() / ".cache" / "hsq")
