"""Promises of operating points, on halves of real splits."""
