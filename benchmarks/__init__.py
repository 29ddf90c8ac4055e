"""Measurements; every result is a JSON file in ``benchmarks/results`` with the command that made it."""
