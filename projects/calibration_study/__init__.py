"""Measurements that docs/results/calibration.md quotes, run by ``tools/prove_*.py``."""
