"""Measurements that docs/calibration.md quotes, run by ``tools/prove_*.py``."""
