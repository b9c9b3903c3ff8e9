"""Exported detectors beside torch: the same numbers, AP in int8, and time.

    python -m projects.benchmark.exports same --out FILE.json [--configs NAME ...]
    python -m projects.benchmark.exports int8 --out FILE.json
        --judge NAME CHECKPOINT DATA_ROOT [--judge ...]
    python -m projects.benchmark.exports time --out FILE.json [--threads 2]

``same`` exports shipped configs with random weights, scaled so that they detect, and compares ONNX
Runtime with torch on two pictures of noise; for NanoDet-Plus see :mod:`.runtimes`. ``int8`` takes
its ranges from training pictures and is judged on the validation split. ``time`` begins with a
prepared picture and ends with detections: all in turns in one process, medians, with random
weights.
"""

from __future__ import annotations

import argparse
import copy
import random
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

import gfl_det
from gfl_det.datasets.images import read_image
from gfl_det.inference.export import (
    ExportedDetector,
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
    Difference,
    average_precision,
    compare,
    noise_pictures,
    picture_paths,
    time_in_turns,
    torch_detector,
)
from gfl_det.inference.export.graph import Picture
from gfl_det.utils.config import config_names, override
from gfl_det.utils.files import write_json
from projects.benchmark.models import outputs_of, spread_weights
from projects.calibration_study.tables import fraction, markdown
from projects.provenance import provenance

TIMED = {  # height and width of the input, px
    'gfl_r50_fpn_1x_coco': (480, 640),
    'gfl_r18_fpn_bccd': (256, 320),
    'gfl_r18-w16_fpn_digits': (192, 256),
}
NOISE = ((224, 320), (260, 150))  # height and width of the pictures, px
SCALE = (320, 224)  # that they are resized to
RANGE_PICTURES = 300
CHECKED_PICTURES = 8
SETTINGS = ExportSettings(Outputs(nms=True))
# Random weights give NanoDet-Plus scores that differ by less than their rounding error, so which
# boxes NMS keeps says nothing.
COMPARED_CONFIGS = [name for name in config_names() if not name.startswith('nanodet')]


def random_checkpoint(cfg: Config, path: Path) -> str:
    """Weights that give many detections."""
    model = copy.deepcopy(cfg.model)
    model.backbone.init_cfg = None
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        detector = MODELS.build(model)
    spread_weights(detector)
    for layer in outputs_of(detector.bbox_head, 'gfl_cls'):
        torch.nn.init.constant_(layer.bias, -2.0)
    for name in ('gfl_cls', 'gfl_reg'):
        for layer in outputs_of(detector.bbox_head, name):
            torch.nn.init.normal_(layer.weight, 0, 0.1)
    torch.save(dict(state_dict=detector.state_dict()), path)
    return str(path)


def shrink_pictures(cfg: Config, scale: tuple[int, int]) -> None:
    """Let a config's test pipeline resize to another scale."""
    for step in cfg.test_dataloader.dataset.pipeline:
        if step.type == 'Resize':
            step.scale = scale


def difference_of(name: str, folder: Path) -> Difference:
    """Of ONNX Runtime and torch, for a shipped config with random weights."""
    cfg = gfl_det.get_config(name)
    shrink_pictures(cfg, SCALE)
    source = load_source(cfg, name, random_checkpoint(cfg, folder / 'weights.pth'))
    write_onnx(source, folder / 'detector.onnx', SETTINGS)
    detector = OnnxDetector(folder / 'detector.onnx')
    return compare(torch_detector(source, None), detector, noise_pictures(NOISE))


def write_files(
    source: ExportSource,
    pictures: Iterable[Picture],
    folder: Path,
    settings: ExportSettings = SETTINGS,
    threads: int = 0,
) -> dict[str, ExportedDetector]:
    """The detector in each runtime; ranges of int8 are those of the pictures."""
    onnx = folder / 'detector.onnx'
    description = write_onnx(source, onnx, settings)
    write_openvino(onnx, folder / 'float32.xml', description)
    inputs = [description.preprocessing([picture]) for picture in pictures]
    write_int8(onnx, folder / 'int8.xml', description, inputs, len(inputs))
    return {
        'ONNX Runtime, float32': OnnxDetector(onnx, threads=threads),
        'OpenVINO, float32': OpenVINODetector(folder / 'float32.xml', threads=threads),
        'OpenVINO, int8': OpenVINODetector(folder / 'int8.xml', threads=threads),
    }


def judge(name: str, checkpoint: str, root: str, folder: Path) -> dict[str, Any]:
    """Validation AP in torch, in OpenVINO and in int8; differences on the first pictures."""
    cfg = gfl_det.get_config(name)
    override(cfg, {'data_root': root})
    source = load_source(cfg, name, checkpoint)
    paths = [path for _, path in picture_paths(cfg, 'train')]
    chosen = random.Random(0).sample(paths, min(RANGE_PICTURES, len(paths)))
    settings = ExportSettings(Outputs(nms=True, uncertainty=True))
    exported = write_files(source, map(read_image, chosen), folder, settings)
    int8 = exported.pop('OpenVINO, int8')
    in_torch = torch_detector(source, None)
    detectors: dict[str, Callable[[Any], Any]] = {
        'torch': in_torch,
        'float32': lambda picture: exported['OpenVINO, float32'].detect([picture])[0],
        'int8': lambda picture: int8.detect([picture])[0],
    }
    ap = {}
    for key, detect in detectors.items():
        found = average_precision(
            lambda path, detect=detect: detect(read_image(path)), source.classes, cfg, 'val'
        )
        ap[key] = found['coco/bbox_mAP']
    paths = [path for _, path in picture_paths(cfg, 'val')]
    pictures = [read_image(path) for path in paths[:CHECKED_PICTURES]]
    found = {key: compare(in_torch, each, pictures)._asdict() for key, each in exported.items()}
    return dict(config=name, pictures=len(paths), ap=ap, differences=found)


def times_of(name: str, size: tuple[int, int], folder: Path, threads: int) -> dict[str, float]:
    """Milliseconds of each runtime."""
    cfg = gfl_det.get_config(name)
    source = load_source(cfg, name, random_checkpoint(cfg, folder / 'weights.pth'))
    detectors = write_files(source, noise_pictures(NOISE), folder, threads=threads)
    return time_in_turns(source, cfg, detectors, size)


def same_table(content: dict[str, Any]) -> str:
    """Largest differences by config, as Markdown."""
    keys = ('score', 'box')
    rows = [[name, *_cells(of, keys)] for name, of in content['same'].items()]
    return markdown(['config', 'detections', 'scores', 'boxes, px', 'without a counterpart'], rows)


def _cells(found: dict[str, Any], keys: Sequence[str]) -> list[str]:
    largest = [f'{found[key]:.1e}' for key in keys]
    return [str(found['detections']), *largest, str(found['unmatched'])]


def int8_table(content: dict[str, Any]) -> str:
    """Validation AP, as Markdown."""
    rows = [
        [of['config'], str(of['pictures']), *map(fraction, of['ap'].values())]
        for of in content['int8']
    ]
    head = ['config', 'pictures', 'float32, torch', 'float32, OpenVINO', 'int8']
    return markdown(head, rows)


def trained_table(content: dict[str, Any]) -> str:
    """Largest differences with trained weights, edges included, as Markdown."""
    keys = ('score', 'box', 'edge', 'entropy')
    rows = [
        [of['config'], runtime, *_cells(found, keys)]
        for of in content['int8']
        for runtime, found in of['differences'].items()
    ]
    measured = ['detections', 'scores', 'boxes, px', 'edges, px', 'entropies, nats']
    return markdown(['config', 'runtime', *measured, 'without a counterpart'], rows, words=2)


def time_table(content: dict[str, Any]) -> str:
    """Milliseconds, and the speed-up over the first row, as Markdown."""
    columns = list(content['time'].values())
    rows = []
    for name in columns[0]:
        row = [name]
        for times in columns:
            ratio = next(iter(times.values())) / times[name]
            row.append(f'{times[name]:.1f} ms, {ratio:.1f} x')
        rows.append(row)
    return markdown(['', *content['time']], rows)


# The part that measures, and the table.
TABLES = {
    'same': ('same', same_table),
    'trained': ('int8', trained_table),
    'int8': ('int8', int8_table),
    'time': ('time', time_table),
}


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = parser.add_subparsers(dest='part', required=True)
    for name in ('same', 'int8', 'time'):
        part = parts.add_parser(name)
        part.add_argument('--out', type=Path, required=True, metavar='FILE.json')
        if name == 'same':
            part.add_argument('--configs', nargs='+', default=COMPARED_CONFIGS, metavar='NAME')
        if name == 'int8':
            words = ('NAME', 'CHECKPOINT', 'DATA_ROOT')
            part.add_argument('--judge', nargs=3, action='append', required=True, metavar=words)
        if name == 'time':
            part.add_argument('--threads', type=int, default=2, help='of each runtime (2)')
    return parser.parse_args(argv)


def measure(args: argparse.Namespace, folder: Path) -> Any:
    """Run the chosen part."""
    if args.part == 'same':
        return {name: difference_of(name, folder)._asdict() for name in args.configs}
    if args.part == 'int8':
        return [judge(*words, folder) for words in args.judge]
    torch.set_num_threads(args.threads)
    return {name: times_of(name, size, folder, args.threads) for name, size in TIMED.items()}


def main() -> None:
    """Measure, write the file, and print its table."""
    args, origin = parse_arguments(), provenance()
    with tempfile.TemporaryDirectory() as folder:
        content = {args.part: measure(args, Path(folder)), **origin}
    write_json(args.out, content, indent=1)
    print('\n\n'.join(table(content) for part, table in TABLES.values() if part == args.part))


if __name__ == '__main__':
    main()
