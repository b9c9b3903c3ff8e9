"""Heads, losses, assigners and detectors, registered for MMDetection."""
