"""Pictures inside a page."""

import base64
import io

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image


def data_uri(picture: Image.Image, kind: str = "PNG") -> str:
    """A picture as text that an ``<img>`` takes.

    :param kind: "PNG" or "JPEG"
    """
    content = io.BytesIO()
    picture.save(content, kind, **({"quality": 85} if kind == "JPEG" else {}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(content.getvalue()).decode()}"


def grey_or_color(values: NDArray[np.floating]) -> Image.Image:
    """From (H, W) or (H, W, 3) in [0, 1]."""
    return Image.fromarray(np.round(255 * np.clip(values, 0, 1)).astype(np.uint8))


def heat(values: NDArray[np.floating], low: float, high: float) -> Image.Image:
    """From (H, W), dark at ``low`` and bright at ``high`` (viridis, which all eyes order alike)."""
    scaled = (np.clip(values, low, high) - low) / max(high - low, 1e-12)
    return Image.fromarray((255 * mpl.colormaps["viridis"](scaled)[..., :3]).round().astype(np.uint8))
