"""Batches that two processes share."""

# Truths of the four images, and how many of the images the first process has.
CASES = {
    'all': ((5, 2, 0, 7), 2),
    'one process without truths': ((0, 0, 4, 3), 2),
    'unequal batches': ((5, 2, 3, 7), 3),
    'unequal batches, one without truths': ((4, 1, 3, 0), 3),
}
SIZE = (96, 128)
