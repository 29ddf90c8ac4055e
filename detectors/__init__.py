"""Detectors with their data and mAP: torchvision's by name, COCO-layout folders, the generated shapes, teachers.

Also what all packages share: errors, files, the cache folder, progress.
"""
