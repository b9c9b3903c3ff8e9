"""Embedded data set of digit scans composed into scenes."""
