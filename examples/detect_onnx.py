"""Detects objects in a photograph with onnxruntime alone.

hsq export runs/photos/model.hsq --onnx photos.onnx --post-processing --dataset photos/
python examples/detect_onnx.py photos.onnx photograph.jpg
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of red, green and blue, as torchvision's detectors have them


def detect(file: str, photograph: str) -> list[tuple[str, float, list[float]]]:
    """Class, score and box (left, top, right, bottom in pixels) of every object, the surest first."""
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    said = json.loads(session.get_modelmeta().custom_metadata_map["hsq"])
    image = Image.open(photograph).convert("RGB")
    scale = min(said["min_size"] / min(image.size), said["max_size"] / max(image.size))
    resized = image.resize([round(side * scale) for side in image.size], Image.Resampling.BILINEAR)
    pixels = ((np.asarray(resized, np.float32) / 255 - MEAN) / STD).astype(np.float32)
    boxes, scores, labels = session.run(["boxes", "scores", "labels"], {"images": pixels.transpose(2, 0, 1)[None]})
    names = [said["classes"][label] for label in labels]
    return list(zip(names, scores.tolist(), (boxes / scale).tolist(), strict=True))


if __name__ == "__main__":
    for name, score, box in detect(sys.argv[1], sys.argv[2]):
        print(f"{name} {score:.2f} at {[round(side) for side in box]}")
