"""Recipes with other libraries, run with the libraries themselves where they are installed."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from gfl_det import GFLInferencer
from tests.helpers.inferring import CLASSES, small_config, write_checkpoint, write_images


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp('recipes')


@pytest.fixture(scope='module')
def checkpoint(folder) -> Path:
    return write_checkpoint(folder)


@pytest.fixture(scope='module')
def detect(checkpoint) -> GFLInferencer:
    return GFLInferencer(checkpoint, device='cpu', score_thr=0.3)


@pytest.fixture(scope='module')
def image(folder) -> Path:
    return write_images(folder / 'images', 1, (128, 160))[0]


def test_supervisions_slicer(detect, image) -> None:
    sv = pytest.importorskip('supervision')

    def callback(tile: np.ndarray):
        return detect(tile, progress=False)[0].to_supervision()

    slicer = sv.InferenceSlicer(callback, slice_wh=(96, 96), overlap_wh=(32, 32), thread_workers=1)
    pixels = cv2.imread(str(image))
    found = slicer(pixels)
    corner = detect(np.ascontiguousarray(pixels[:96, :96]), progress=False)[0]
    assert len(found) > 0
    assert set(found.data['class_name']) <= set(CLASSES)
    best = corner.instances.bboxes[0].numpy()
    assert np.abs(found.xyxy - best).max(1).min() < 20  # there, or merged with a neighbour's
    assert found.xyxy[:, 2].max() > 96


def test_supervisions_tracker(detect, image) -> None:
    """In a package of its own since supervision 0.31."""
    trackers = pytest.importorskip('trackers')
    tracker = trackers.ByteTrackTracker(
        track_activation_threshold=0.3, high_conf_det_threshold=0.3, minimum_consecutive_frames=1
    )
    pixels = cv2.imread(str(image))
    frames = [np.roll(pixels, shift, axis=1) for shift in (0, 1, 2)]
    tracks = [tracker.update(each.to_supervision()) for each in detect(frames, progress=False)]
    assert all(len(each) > 0 for each in tracks)
    assert (set(tracks[1].tracker_id) & set(tracks[2].tracker_id)) - {-1}
    assert 'class_name' in tracks[2].data


def test_sahi_slices_by_its_model_of_mmdet(checkpoint, folder, image) -> None:
    pytest.importorskip('sahi')
    from sahi import AutoDetectionModel
    from sahi.predict import get_sliced_prediction

    config = folder / 'config.py'
    small_config().dump(config)
    model = AutoDetectionModel.from_pretrained(
        model_type='mmdet',
        model_path=str(checkpoint),
        config_path=str(config),
        confidence_threshold=0.3,
        device='cpu',
    )
    found = get_sliced_prediction(
        str(image), model, slice_height=96, slice_width=96, verbose=0
    ).object_prediction_list
    assert found
    assert {each.category.name for each in found} <= set(CLASSES)
    assert max(each.bbox.maxx for each in found) > 96


def test_mmdets_inferencer_runs_a_shipped_config(checkpoint, folder, image, detect) -> None:
    from mmdet.apis import DetInferencer

    config = folder / 'plain.py'
    small_config().dump(config)
    run = DetInferencer(str(config), str(checkpoint), device='cpu', show_progress=False)
    (found,) = run(str(image))['predictions']
    ours = detect(image, progress=False)[0]
    kept = [score for score in found['scores'] if score >= 0.3]
    assert len(kept) == len(ours)
    assert kept == pytest.approx(ours.instances.scores.tolist(), abs=1e-5)
