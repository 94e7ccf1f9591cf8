"""Benchmarks are run by hand: ``python tests/benchmarks/speed.py``."""

collect_ignore_glob = ["*.py"]
