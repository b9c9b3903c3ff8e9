"""The installation: what is there, whether it fits together, and the cure for what does not.

    python -m gfl_det.doctor [--json FILE] [--no-self-test]

It runs where nothing else does: until the last step it needs nothing but Python's own library, and
what may crash is imported in a process of its own.
"""
