"""NanoDet-Plus by every runtime: halves of the images, and tables of what was measured."""

from __future__ import annotations

import json

import numpy as np
import torch
from torch import nn

from projects.benchmark import processors, runtimes

AP = dict.fromkeys(runtimes.KEYS, 0.25)


def test_a_half_has_its_images_and_their_boxes(tmp_path) -> None:
    whole = tmp_path / 'whole.json'
    images = [dict(id=number) for number in (3, 5, 8)]
    boxes = [dict(id=number, image_id=image) for number, image in enumerate((3, 5, 5, 8))]
    whole.write_text(json.dumps(dict(images=images, annotations=boxes, categories=[])))
    half = json.loads(runtimes.half_of(whole, [5, 8], tmp_path / 'half.json').read_text())
    assert [each['id'] for each in half['images']] == [5, 8]
    assert [each['id'] for each in half['annotations']] == [1, 2, 3]


def test_raw_outputs_are_compared_in_ncnns_order() -> None:
    """Scores before edges, a row per cell, level after level."""

    class Detector(nn.Module):
        backbone = neck = staticmethod(lambda images: images)

        def bbox_head(self, images):
            logits = [images[:, :1, ::step, ::step] for step in (1, 2)]
            return logits, [level.repeat(1, 4, 1, 1) for level in logits]

    images = np.random.default_rng(0).standard_normal((1, 3, 4, 4)).astype(np.float32)

    class Source:
        model = Detector()

        @staticmethod
        def preprocessing(_):
            return Source

    Source.images = images
    rows = [images[0, 0, ::step, ::step].reshape(-1) for step in (1, 2)]
    flat = torch.from_numpy(np.concatenate(rows))
    expected = torch.cat([flat.sigmoid()[:, None], flat[:, None].repeat(1, 4)], 1).numpy()
    moved = expected.copy()
    moved[-1, 0] += 0.125
    assert runtimes.raw_difference(Source, lambda _: expected, [None]) == 0
    assert runtimes.raw_difference(Source, lambda _: moved, [None]) == np.float32(0.125)


def test_tables_are_of_the_file() -> None:
    found = runtimes.tables(
        dict(
            ap={'ncnn': AP, 'torch': {**AP, 'AP': 0.3344}},
            exported={'OpenVINO': dict(score=4.6e-7, box=2.7e-4, unmatched=1)},
            int8=[dict(float32=0.35, int8=0.34), dict(float32=0.37, int8=0.36)],
        )
    )
    assert '| torch | .334 | .250 |' in found['ap']
    assert '| OpenVINO | 4.6e-07 | 2.7e-04 | 1 |' in found['exported']
    assert '| int8 | 2 | .350 ± .014 |' in found['int8']


def test_times_stand_beside_ncnns() -> None:
    runs = [
        {'ms': {'ncnn': dict(network=10.0, whole=20.0), 'other': dict(network=number)}}
        for number in (30.0, 31.0)
    ]
    runs[0]['ms']['torch'] = runs[1]['ms']['torch'] = dict(network=8.0, whole=30.0)
    rows = processors.table(runs).splitlines()
    assert rows[2] == '| ncnn | 10.0, 10.0 | 1.00, 1.00 | 20.0, 20.0 | 1.00, 1.00 |'
    assert rows[3] == '| other | 30.0, 31.0 |  |  |  |'  # another network
    assert rows[4] == '| torch | 8.0, 8.0 | .80, .80 | 30.0, 30.0 | 1.50, 1.50 |'
