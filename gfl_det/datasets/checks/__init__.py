"""Checks that find faults of a data set before training and write a repaired file.

Each check works on the entries that earlier checks kept, and ``--fix`` writes the result: the same
code checks and repairs a file.
"""
