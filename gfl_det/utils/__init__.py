"""Configs, files, the console and pixels: what every package may use."""
