"""NanoDet-Plus's published weights in every runtime: the same boxes, the same AP, and int8.

    python -m projects.benchmark.runtimes NAME.param NAME.bin --annotations FILE.json
        --images FOLDER [--halvings 3] [--threads 2] --out FILE.json

ncnn runs in float32, between our preprocessing and our post-processing. AP is that of the config's
metric, with three digits. int8 takes its ranges from a random half of the images and is judged on
the other half, beside float32 there.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.structures import InstanceData

import gfl_det
from gfl_det.datasets.images import read_image
from gfl_det.inference.export import (
    ExportSettings,
    ExportSource,
    OnnxDetector,
    OpenVINODetector,
    Outputs,
    load_source,
    write_int8,
    write_onnx,
    write_openvino,
)
from gfl_det.inference.export.evaluation import (
    average_precision,
    compare,
    picture_paths,
    torch_detector,
)
from gfl_det.inference.export.graph import Picture
from gfl_det.inference.foreign_weights import config_of, convert
from gfl_det.utils.files import write_json
from projects.benchmark.processors import Network, ncnn_detector, ncnn_network
from projects.calibration_study.tables import fraction, markdown, spread
from projects.provenance import provenance

KEYS = {
    'AP': 'bbox_mAP',
    'AP50': 'bbox_mAP_50',
    'AP75': 'bbox_mAP_75',
    'AP small': 'bbox_mAP_s',
    'AP medium': 'bbox_mAP_m',
    'AP large': 'bbox_mAP_l',
}


def config_with(name: str, annotations: Path, images: Path) -> Config:
    """The shipped config with its test data in place."""
    cfg = gfl_det.get_config(name)
    dataset = cfg.test_dataloader.dataset
    dataset.update(data_root='', ann_file=str(annotations), data_prefix=dict(img=f'{images}/'))
    cfg.test_evaluator.ann_file = str(annotations)
    return cfg


def judge(
    detect: Callable[[Picture], InstanceData], cfg: Config, classes: Sequence[str]
) -> dict[str, float]:
    """COCO's metrics of a detector on the test images."""
    found = average_precision(lambda path: detect(read_image(path)), classes, cfg, 'test')
    return {name: found[f'coco/{key}'] for name, key in KEYS.items()}


@torch.inference_mode()
def raw_difference(
    source: ExportSource, run: Callable[[Picture], np.ndarray], pictures: Sequence[Picture]
) -> float:
    """Largest difference of ncnn's output, scores and logits of edges, from the head's."""
    network, largest = Network(source.model), 0.0
    for picture in pictures:
        images = source.preprocessing([picture]).images
        maps = network(torch.from_numpy(images))
        half = len(maps) // 2  # the scores of all levels, then the edges
        pairs = zip(maps[:half], maps[half:])
        levels = [torch.cat([cls.sigmoid(), edges], 1).flatten(2) for cls, edges in pairs]
        ours = torch.cat(levels, 2)[0].T.numpy()
        largest = max(largest, float(np.abs(ours - run(images[0])).max()))
    return largest


def half_of(annotations: Path, ids: Sequence[int], path: Path) -> Path:
    """Write the annotations of some of the images."""
    content = json.loads(annotations.read_text(encoding='utf-8'))
    chosen = set(ids)
    content['images'] = [each for each in content['images'] if each['id'] in chosen]
    content['annotations'] = [each for each in content['annotations'] if each['image_id'] in chosen]
    path.write_text(json.dumps(content))
    return path


def judge_int8(
    source: ExportSource, cfg: Config, folder: Path, args: argparse.Namespace
) -> list[dict[str, Any]]:
    """AP in float32 and in int8 on one half of the images, with ranges of the other."""
    pictures = picture_paths(cfg, 'test')
    float32 = OpenVINODetector(folder / 'detector.xml', threads=args.threads)
    description, halvings = float32.description, []
    for seed in range(args.halvings):
        order = np.random.default_rng(seed).permutation(len(pictures))
        range_half, judged_half = np.array_split(order, 2)
        inputs = [description.preprocessing([read_image(pictures[k][1])]) for k in range_half]
        path = folder / f'int8-{seed}.xml'
        write_int8(folder / 'detector.onnx', path, description, inputs, len(inputs))
        int8 = OpenVINODetector(path, threads=args.threads)
        ids = [pictures[k][0] for k in judged_half]
        half = config_with(
            source.name, half_of(args.annotations, ids, folder / 'half.json'), args.images
        )
        halving: dict[str, Any] = dict(seed=seed, images=len(ids))
        for name, detector in (('float32', float32), ('int8', int8)):
            halving[name] = judge(detecting(detector), half, source.classes)['AP']
        halvings.append(halving)
    return halvings


def detecting(detector: Any) -> Callable[[Picture], InstanceData]:
    """A function of one picture."""
    return lambda picture: detector.detect([picture])[0]


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Detect in all images with each runtime."""
    name = config_of(args.pair[0])
    cfg = config_with(name, args.annotations, args.images)
    convert(args.pair, folder / 'weights.pth')
    source = load_source(cfg, name, str(folder / 'weights.pth'))
    pictures = [read_image(path) for _, path in picture_paths(cfg, 'test')]
    run = ncnn_network(args.pair, args.threads, float32=True)
    in_torch = torch_detector(source, None)
    size = tuple(source.preprocessing([pictures[0]]).images.shape[2:])
    settings = ExportSettings(Outputs(nms=True), size=size)
    description = write_onnx(source, folder / 'detector.onnx', settings)
    write_openvino(folder / 'detector.onnx', folder / 'detector.xml', description)
    exported = {
        'ONNX Runtime': OnnxDetector(folder / 'detector.onnx', threads=args.threads),
        'OpenVINO': OpenVINODetector(folder / 'detector.xml', threads=args.threads),
    }
    fixed = torch_detector(source, size)
    detectors = {
        'ncnn': lambda picture: ncnn_detector(run, source, picture)()[0],
        'torch': in_torch,
        **{runtime: detecting(each) for runtime, each in exported.items()},
    }
    return dict(
        images=len(pictures),
        raw=raw_difference(source, run, pictures),
        ap={each: judge(detect, cfg, source.classes) for each, detect in detectors.items()},
        exported={
            runtime: compare(fixed, detector, pictures)._asdict()
            for runtime, detector in exported.items()
        },
        int8=judge_int8(source, cfg, folder, args),
    )


def tables(content: dict[str, Any]) -> dict[str, str]:
    """Markdown: AP by runtime, differences of exported files, and int8."""
    rows = [[name, *(fraction(of[key]) for key in KEYS)] for name, of in content['ap'].items()]
    differences = [
        [name, *(f'{of[key]:.1e}' for key in ('score', 'box')), str(of['unmatched'])]
        for name, of in content['exported'].items()
    ]
    halves = [
        [name, str(len(content['int8'])), spread([each[name] for each in content['int8']])]
        for name in ('float32', 'int8')
    ]
    return dict(
        ap=markdown(['runtime', *KEYS], rows),
        exported=markdown(['runtime', 'score', 'box, px', 'without a counterpart'], differences),
        int8=markdown(['OpenVINO', 'halvings', 'AP on the other half'], halves),
    )


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('pair', nargs=2, metavar='FILE', help='NAME.param NAME.bin')
    parser.add_argument('--annotations', type=Path, required=True, metavar='FILE.json')
    parser.add_argument('--images', type=Path, required=True, metavar='FOLDER')
    parser.add_argument('--halvings', type=int, default=3, help='of the images, for int8 (3)')
    parser.add_argument('--threads', type=int, default=2, help='(2)')
    parser.add_argument('--out', type=Path, required=True, metavar='FILE.json')
    return parser.parse_args(argv)


def main() -> None:
    """Measure, write the file, and print its tables."""
    args, origin = parse_arguments(), provenance()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        content = {**measure(args, Path(folder)), **origin}
    write_json(args.out, content, indent=1)
    print('\n\n'.join(tables(content).values()))


if __name__ == '__main__':
    main()
