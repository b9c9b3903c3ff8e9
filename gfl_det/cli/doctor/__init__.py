"""Diagnosis of the installation: installed packages, their compatibility, and remedies.

    python -m gfl_det.doctor [--json FILE] [--no-self-test]

It works in broken installations: until the last step it needs only the standard library, and
packages that may crash are imported in a separate process.
"""
