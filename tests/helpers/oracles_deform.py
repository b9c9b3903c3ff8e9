"""Deformable convolution as its papers write it, one value at a time."""

from __future__ import annotations

import itertools
import math

import numpy as np


def sample(plane: np.ndarray, y: float, x: float) -> float:
    """Bilinear, of a plane (H, W) that is 0 outside."""
    total, top, left = 0.0, math.floor(y), math.floor(x)
    for row, column in itertools.product((top, top + 1), (left, left + 1)):
        if 0 <= row < plane.shape[0] and 0 <= column < plane.shape[1]:
            total += plane[row, column] * (1 - abs(y - row)) * (1 - abs(x - column))
    return total


def deform_conv2d(image, offset, mask, weight, stride, padding, dilation, groups, deform_groups):
    """Arrays as of mmcv's layers; pairs are (height, width); mask None stands for 1."""
    batch, channels, _, _ = image.shape
    filters, depth, kernel_h, kernel_w = weight.shape
    _, _, out_h, out_w = offset.shape
    output = np.zeros((batch, filters, out_h, out_w))
    for n, f, i, j in np.ndindex(output.shape):
        for c, k, m in np.ndindex(depth, kernel_h, kernel_w):
            channel = f // (filters // groups) * depth + c
            tap = channel // (channels // deform_groups) * kernel_h * kernel_w + k * kernel_w + m
            y = i * stride[0] - padding[0] + k * dilation[0] + offset[n, 2 * tap, i, j]
            x = j * stride[1] - padding[1] + m * dilation[1] + offset[n, 2 * tap + 1, i, j]
            share = 1.0 if mask is None else mask[n, tap, i, j]
            output[n, f, i, j] += weight[f, c, k, m] * share * sample(image[n, channel], y, x)
    return output
