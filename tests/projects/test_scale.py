"""The benchmarks of very many images: made-up files that the readers take, and rates."""

from __future__ import annotations

import os
import sys

import numpy as np
import pytest

from gfl_det.evaluation.detections import Detections, gts_of_table, read_annotations
from gfl_det.evaluation.evaluate import evaluate_detections
from gfl_det.evaluation.parts import evaluate_parts
from gfl_det.inference import GFLInferencer
from gfl_det.inference.results import ImageResult
from projects.scale import evaluation
from projects.scale.throughput import (
    measure,
    pictures,
    rate_of_shards,
    rate_of_stream,
    write_tiny,
)

shards = pytest.importorskip('gfl_det.inference.shards', reason='needs pyarrow')


def test_made_up_results_are_judged_by_parts_as_in_memory(tmp_path):
    evaluation.write(tmp_path, images=60, classes=5, boxes=4.0, found=20, shard=25)
    table = read_annotations(tmp_path / 'labels.json')
    gts, parts = gts_of_table(table), list(shards.read_parts(tmp_path / 'results', table))
    assert [len(part.scores) for part in parts] == [500, 500, 200]
    whole = Detections(*(np.concatenate(each) for each in zip(*parts)))
    ours, theirs = evaluate_parts(parts, gts), evaluate_detections(whole, gts)
    np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=0, atol=1e-9)
    assert 0.1 < ours['AP50'] < 0.9


def test_the_rate_leaves_out_the_start(tmp_path):
    folder = shards.ResultFolder(tmp_path)
    folder.start([], {})
    for number, second in enumerate((100, 101, 104, 105, 108)):  # two workers, 4 s a shard
        shard = shards.Shard(number, ())
        folder.commit(shard, [ImageResult(f'{place}.png') for place in range(6)])
        os.utime(folder.detections / shard.part, (second, second))
    assert rate_of_shards(tmp_path, 2) == 18 / 7
    assert np.isnan(rate_of_shards(tmp_path, 5))
    assert rate_of_stream(b'1 a second\nspeed: 3 images, 9 ms each, 1.7 a second with ...') == 1.7


def test_pictures_repeat_and_the_tiny_detector_finds_boxes_in_some(tmp_path):
    folder = pictures(tmp_path, 102, (64, 64))
    files = sorted(folder.iterdir())
    assert len(files) == 102
    assert files[100].read_bytes() == files[0].read_bytes() != files[1].read_bytes()
    detector = GFLInferencer(write_tiny(tmp_path), device='cpu')
    found = detector(files[:100], batch_size=50, progress=False)
    assert 0.05 < np.mean([len(each) > 0 for each in found]) < 0.5


def test_memory_is_that_of_a_command_and_what_it_starts():
    hold = 'import subprocess, sys, time; held = bytearray(2**26); time.sleep(0.5); '
    _, alone = measure([sys.executable, '-c', hold], 0.05)
    _, both = measure(
        [sys.executable, '-c', f'{hold}subprocess.run([sys.executable, "-c", {hold!r}])'], 0.05
    )
    assert 0.06 < alone < 0.12
    assert 0.12 < both < 0.24
