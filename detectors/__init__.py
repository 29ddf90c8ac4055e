"""Detectors with their data and mAP: torchvision's by name, COCO-layout folders, the generated shapes, teachers."""
