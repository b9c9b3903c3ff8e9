"""Overfit check: can a config fit eight pictures? If not, the findings say which part is wrong."""
