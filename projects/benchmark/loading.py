"""Picture loading for training: mmdet's data set and ours, and what makes it faster."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable

import cv2
import numpy as np
from mmdet.registry import DATASETS
from mmdet.utils import register_all_modules

from gfl_det.utils.timing import Row, Runs

NUM_PICTURES = 16
PIPELINE: list[dict] = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=(1333, 800), keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]


def write_pictures(folder: Path, size: tuple[int, int] = (480, 640)) -> None:
    """A small COCO data set of JPEGs with the detail of photographs, seven boxes each."""
    generator = np.random.default_rng(0)
    height, width = size
    images: list[dict] = []
    annotations: list[dict] = []
    for number in range(NUM_PICTURES):
        noise = generator.normal(128, 60, (height // 4, width // 4, 3)).astype(np.float32)
        smooth = cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
        picture = smooth + generator.normal(0, 6, smooth.shape)
        name = f'{number}.jpg'
        cv2.imwrite(str(folder / name), picture.clip(0, 255).astype(np.uint8))
        images.append(dict(id=number, file_name=name, height=height, width=width))
        for each in range(7):
            box = [10.0 + 60 * each, 20.0, 50.0, 200.0]
            annotations.append(
                dict(
                    id=len(annotations),
                    image_id=number,
                    category_id=1,
                    bbox=box,
                    area=box[2] * box[3],
                    iscrowd=0,
                )
            )
    categories = [dict(id=1, name='thing')]
    parts = dict(images=images, annotations=annotations, categories=categories)
    (folder / 'set.json').write_text(json.dumps(parts))


def build_dataset(folder: Path, ours: bool, pipeline: list[dict] | None = None) -> Any:
    """The folder's data set for training, ours or mmdet's."""
    return DATASETS.build(
        dict(
            type='gfl_det.CocoDataset' if ours else 'CocoDataset',
            ann_file=str(folder / 'set.json'),
            data_prefix=dict(img=f'{folder}/'),
            metainfo=dict(classes=('thing',)),
            pipeline=pipeline or PIPELINE,
        )
    )


@contextmanager
def opencv_threads(count: int) -> Iterator[None]:
    """Let OpenCV use so many threads for a while."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(count)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def loading_rows(runs: Runs) -> list[Row]:
    """Milliseconds an image in one process: mmdet's data set, ours, and ours with each option.

    The floor is decoding the file alone.
    """
    register_all_modules()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pictures(folder)
        theirs, ours = build_dataset(folder, False), build_dataset(folder, True)
        decoded = [ours.get_data_info(index)['img_path'] for index in range(NUM_PICTURES)]
        files = [np.fromfile(path, np.uint8) for path in decoded]
        pictures = [np.asarray(cv2.imdecode(each, cv2.IMREAD_COLOR)) for each in files]
        cached = build_dataset(folder, True, PIPELINE[1:])

        def decode() -> None:
            for each in files:
                cv2.imdecode(each, cv2.IMREAD_COLOR)

        def load(dataset: Any, threads: int = 1) -> Callable[[], None]:
            def run() -> None:
                with opencv_threads(threads):
                    for index in range(NUM_PICTURES):
                        dataset[index]

            return run

        def load_cached() -> None:
            with opencv_threads(1):
                for index, picture in enumerate(pictures):
                    info = cached.get_data_info(index)
                    shape = picture.shape[:2]
                    cached.pipeline(info | dict(img=picture, img_shape=shape, ori_shape=shape))

        variants = {
            'as it is': load(ours),
            'OpenCV with two threads': load(ours, 2),
            'decoded pictures kept in memory': load_cached,
        }
        times = runs.in_turns(load(theirs), decode, *variants.values())
    per_image = [each / NUM_PICTURES for each in times]
    return [
        Row(f'data loading, an image, {variant}', per_image[0], time, floor=per_image[1])
        for variant, time in zip(variants, per_image[2:])
    ]
