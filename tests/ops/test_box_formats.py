"""Sides and corners of boxes."""

from __future__ import annotations

import numpy as np

from gfl_det.ops.boxes import xywh_to_xyxy, xyxy_to_xywh


def test_a_drawn_box_there_and_back():
    sides = np.array([[[3.0, 5.0, 10.0, 20.0]], [[-1.0, 0.5, 0.0, 2.0]]])
    corners = xywh_to_xyxy(sides)
    assert corners.tolist() == [[[3, 5, 13, 25]], [[-1, 0.5, -1, 2.5]]]
    np.testing.assert_array_equal(xyxy_to_xywh(corners), sides)
    assert sides[0, 0, 2] == 10  # the argument is left alone


def test_no_boxes():
    assert xywh_to_xyxy(np.zeros((0, 4))).shape == xyxy_to_xywh(np.zeros((0, 4))).shape == (0, 4)
