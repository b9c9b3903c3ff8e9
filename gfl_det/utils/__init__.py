"""Shared utilities for configs, files, the console and pixels."""
