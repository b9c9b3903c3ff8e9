"""Tests; :mod:`tests.helpers` holds what they share."""
