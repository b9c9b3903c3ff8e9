"""Suppression as the rule says it: one box at a time, in float32 numbers, nothing clever."""

from __future__ import annotations

import math

import numpy as np

ONE, ZERO = np.float32(1), np.float32(0)


def area(box, offset):
    return (box[2] - box[0] + np.float32(offset)) * (box[3] - box[1] + np.float32(offset))


def iou(a, b, offset):
    width = min(a[2], b[2]) - max(a[0], b[0]) + np.float32(offset)
    height = min(a[3], b[3]) - max(a[1], b[1]) + np.float32(offset)
    shared = max(ZERO, width) * max(ZERO, height)
    return shared / (area(a, offset) + area(b, offset) - shared)


def nms(boxes, waiting, threshold, offset):
    """Indices of the kept boxes; boxes (N, 4) is a float32 array, waiting the order of score."""
    boxes = [[np.float32(x) for x in box] for box in boxes]
    kept = []
    with np.errstate(all='ignore'):
        for i in waiting:
            if not any(iou(boxes[k], boxes[i], offset) > np.float32(threshold) for k in kept):
                kept.append(i)
    return kept


def soft_nms(boxes, scores, threshold, sigma, floor, method, offset):
    """Pairs of index and lowered score, in the order in which boxes are chosen."""
    boxes = [[np.float32(x) for x in box] for box in boxes]
    waiting = [[i, np.float32(score)] for i, score in enumerate(scores)]
    chosen = []
    with np.errstate(all='ignore'):
        while waiting:
            place = max(range(len(waiting)), key=lambda p: waiting[p][1])  # the first of the best
            waiting[0], waiting[place] = waiting[place], waiting[0]
            best, *waiting = waiting
            chosen.append(tuple(best))
            p = 0
            while p < len(waiting):
                index = waiting[p][0]
                overlap = iou(boxes[best[0]], boxes[index], offset)
                waiting[p][1] *= weight(overlap, np.float32(threshold), np.float32(sigma), method)
                if not waiting[p][1] < np.float32(floor):  # 0/0 makes no number, and stays
                    p += 1
                    continue
                last = waiting.pop()
                if p < len(waiting):
                    waiting[p] = last
    return chosen


def weight(overlap, threshold, sigma, method):
    if method == 'gaussian':
        return np.float32(math.exp(-(overlap * overlap) / sigma))
    if not overlap >= threshold:
        return ONE
    return ZERO if method == 'naive' else ONE - overlap
