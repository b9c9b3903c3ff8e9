"""AP and memory of tiled inference on a made-up mosaic, against its pictures one by one.

    python -m projects.large_pictures.mosaic CHECKPOINT --annotations JSON --images DIR --out JSON

Pictures of one size are laid out in cells, a gap of the detector's padding colour between them, and
written as one TIFF. Detections of the mosaic are given back to the pictures by their centres.

Two things beside tiles change AP. A picture is seen at another place of the network's grid, and
beside its neighbours: ``windows`` cuts each picture from the mosaic with 128 px more, and has no
seams. And AP of few images is biased upwards, less so when the copies of each picture, seen
differently, are pooled: ``..._per_copy`` is the mean of the copies' AP.
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
import torch

from gfl_det.utils.files import check_writable, write_json

MARGIN = 64  # px about a picture in its window


def main() -> None:
    """Lay out, detect, judge."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
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
    seen = dict(mosaic=by_picture, windows=in_windows(args, path, names, size, columns))
    result = dict(
        checkpoint=Path(args.checkpoint).name,
        overlap=args.overlap,
        side=args.side,
        pictures=len(names),
        unique=len(unique),
        tiles=len(tiled_tiles(args)),
        detections=len(found),
        seconds=round(seconds, 1),
        peak_gib=round(peak, 2),
        one_by_one=average_precision(args, names, single, tiled.classes),
    )
    for name, by_place in seen.items():
        result[name] = average_precision(args, names, by_place, tiled.classes)
        result[f'{name}_per_copy'] = per_copy(args, unique, by_place, tiled.classes)
    return result


def per_copy(
    args: argparse.Namespace, unique: list, found: dict, classes: tuple
) -> dict[str, float]:
    """Mean AP of the complete copies of all pictures, and the standard deviation of one."""
    every = [
        average_precision(args, unique, {i: found[first + i] for i in range(len(unique))}, classes)[
            'AP'
        ]
        for first in range(0, len(found) - len(unique) + 1, len(unique))
    ]
    return dict(AP=round(float(np.mean(every)), 4), std=round(float(np.std(every, ddof=1)), 4))


def in_windows(
    args: argparse.Namespace, path: Path, names: list, size: tuple, columns: int
) -> dict[int, tuple]:
    """Detections of the pictures, each in a window with what surrounds it in the mosaic.

    The windows are scaled as the pictures are, and lie at random between 32 px more on the left and
    upper side and 96.
    """
    from mmengine.config import Config

    from gfl_det import GFLInferencer
    from gfl_det.utils.config import walk

    text = torch.load(args.checkpoint, map_location='cpu', weights_only=False)['meta']['cfg']
    cfg = Config.fromstring(text, '.py')
    for _, step in walk(cfg.test_dataloader, ''):
        if step.get('type') == 'Resize' and 'scale' in step:
            longest = max(step.pop('scale'))
            step['scale_factor'] = longest / max(size)
    detector = GFLInferencer(args.checkpoint, cfg, device='cpu')
    mosaic = tifffile.memmap(path, mode='r')
    rng = np.random.default_rng(0)
    found = {}
    for place in range(len(names)):
        left, top = (
            min(max(start - int(margin), 0), args.side - side - 2 * MARGIN)
            for start, margin, side in zip(
                corner(place, size, columns, args.gap),
                rng.integers(MARGIN // 2, 3 * MARGIN // 2, 2),
                size[::-1],
            )
        )
        window = mosaic[top : top + size[0] + 2 * MARGIN, left : left + size[1] + 2 * MARGIN]
        (result,) = detector([np.ascontiguousarray(window[..., ::-1])], progress=False)
        start = corner(place, size, columns, args.gap)
        boxes = result.instances.bboxes.numpy() + np.subtract([left, top] * 2, start * 2)
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        inside = np.flatnonzero(((centres >= 0) & (centres < size[::-1])).all(1))
        found[place] = (boxes[inside].clip(0, [*size[::-1]] * 2), result.instances[inside])
    return found


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
