"""Checks that find faults of a data set before training does, and write a repaired file.

Each check works on what the ones before it left, and what it takes away or changes is what
``--fix`` writes: a file is checked and repaired by the same code.
"""
