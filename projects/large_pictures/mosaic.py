"""AP and memory of tiled inference on a made-up mosaic, against its pictures one by one.

    python -m projects.large_pictures.mosaic CHECKPOINT --annotations JSON --images DIR --out JSON

Pictures of one size are laid out in cells, a gap of the detector's padding colour between them, and
written as one TIFF. Detections of the mosaic are given back to the pictures by their centres.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import time
from pathlib import Path

import cv2
import numpy as np
import tifffile

from gfl_det.utils.files import check_writable, write_json


def main() -> None:
    """Lay out, detect, judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('checkpoint')
    add('--annotations', required=True)
    add('--images', required=True)
    add('--out', required=True)
    add('--side', type=int, default=20_000)
    add('--gap', type=int, default=20, help='px between pictures')
    add('--tile', type=int, nargs=2, default=(480, 640))
    add('--overlap', type=int, default=160)
    add('--batch-size', type=int, default=8)
    args = parser.parse_args()
    check_writable(args.out)
    path = Path(args.out).with_suffix('.tif')
    entries = json.loads(Path(args.annotations).read_text())['images']
    size = entries[0]['height'], entries[0]['width']
    entries = [each for each in entries if (each['height'], each['width']) == size]
    rows, columns = (args.side // (each + args.gap) for each in size)
    names = [entries[place % len(entries)]['file_name'] for place in range(rows * columns)]
    # In a process of its own, whose memory does not count.
    building = multiprocessing.get_context('spawn').Process(
        target=lay_out, args=(path, args, names, size, columns)
    )
    building.start()
    building.join()
    write_json(args.out, judge(args, path, names, size, columns))
    path.unlink()


def corner(place: int, size: tuple[int, int], columns: int, gap: int) -> tuple[int, int]:
    """Left and top px of a picture's cell."""
    height, width = size
    return place % columns * (width + gap), place // columns * (height + gap)


def lay_out(path: Path, args: argparse.Namespace, names: list, size: tuple, columns: int) -> None:
    """Write the mosaic."""
    from gfl_det import GFLInferencer

    mean = GFLInferencer(args.checkpoint, device='cpu').model.data_preprocessor.mean
    shape = (args.side, args.side, 3)
    mosaic = tifffile.memmap(path, shape=shape, dtype=np.uint8, photometric='rgb')
    mosaic[:] = mean.flatten().round().byte().numpy()
    for place, name in enumerate(names):
        left, top = corner(place, size, columns, args.gap)
        picture = cv2.imread(str(Path(args.images) / name))
        mosaic[top : top + size[0], left : left + size[1]] = picture[..., ::-1]
    mosaic.flush()


def judge(
    args: argparse.Namespace, path: Path, names: list, size: tuple, columns: int
) -> dict[str, object]:
    """Detect both ways; AP of each, seconds and memory."""
    from gfl_det import GFLInferencer

    tiled = GFLInferencer(args.checkpoint, device='cpu', tile=args.tile, overlap=args.overlap)
    sources = tiled.find(str(path), max_pixels=args.side**2)
    began = time.perf_counter()
    (whole,) = tiled.stream(sources, batch_size=args.batch_size)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    found = whole.instances
    boxes = found.bboxes.numpy()
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    height, width = size
    place = (centres[:, 1] // (height + args.gap)) * columns + centres[:, 0] // (width + args.gap)
    by_picture = {}
    for index in range(len(names)):
        mine = found[np.flatnonzero(place == index)]
        left, top = corner(index, size, columns, args.gap)
        shifted = mine.bboxes.numpy() - [left, top, left, top]
        by_picture[index] = (shifted.clip(0, [width, height] * 2), mine)
    tiled.tiling = None
    unique = list(dict.fromkeys(names))
    alone = {
        name: result.instances
        for name, result in zip(
            unique, tiled([str(Path(args.images) / each) for each in unique], progress=False)
        )
    }
    single = {i: (alone[name].bboxes.numpy(), alone[name]) for i, name in enumerate(names)}
    return dict(
        side=args.side,
        pictures=len(names),
        tiles=len(tiled_tiles(args)),
        detections=len(found),
        seconds=round(seconds, 1),
        peak_gib=round(peak, 2),
        mosaic=average_precision(args, names, by_picture, tiled.classes),
        one_by_one=average_precision(args, names, single, tiled.classes),
    )


def tiled_tiles(args: argparse.Namespace) -> list:
    """The tiles of the mosaic."""
    from gfl_det.inference.tiles import TileGrid

    return TileGrid.of(args.tile, args.overlap).tiles(args.side, args.side)


def average_precision(
    args: argparse.Namespace, names: list, found: dict, classes: tuple
) -> dict[str, float]:
    """COCO's AP of the pictures, each place of the mosaic an image."""
    from gfl_det.calibration import detections_from_coco, gts_from_coco
    from gfl_det.evaluation.evaluate import evaluate_detections

    content = json.loads(Path(args.annotations).read_text())
    ids = {each['file_name']: each['id'] for each in content['images']}
    category = {each['name']: each['id'] for each in content['categories']}
    by_image: dict = {}
    for each in content['annotations']:
        by_image.setdefault(each['image_id'], []).append(each)
    tiled = dict(
        images=[dict(id=i, file_name=f'{i}') for i in range(len(names))],
        categories=content['categories'],
        annotations=[
            {**each, 'image_id': i} for i, name in enumerate(names) for each in by_image[ids[name]]
        ],
    )
    for number, each in enumerate(tiled['annotations']):
        each['id'] = number + 1
    results = [
        dict(
            image_id=i,
            category_id=category[classes[label]],
            bbox=[*box[:2].tolist(), *(box[2:] - box[:2]).tolist()],
            score=score,
        )
        for i, (boxes, found_in) in found.items()
        for box, label, score in zip(boxes, found_in.labels.tolist(), found_in.scores.tolist())
    ]
    gts = gts_from_coco(tiled)
    judged = evaluate_detections(detections_from_coco(results, gts), gts)
    return {name: round(judged[name], 4) for name in ('AP', 'AP50', 'AP75')}


if __name__ == '__main__':
    main()
