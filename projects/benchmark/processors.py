"""NanoDet-Plus on a processor by every runtime, beside ncnn and RTMDet-tiny.

    python -m projects.benchmark.processors NAME.param NAME.bin --picture FILE [--int8 FILE ...]
                                            [--threads 2] [--rounds 100] [--out FILE.json]

Batch 1; all in turns in one process, a round after the other; medians. "network" is backbone, neck
and head on an input that is ready; "picture in, boxes out" begins with a decoded picture. --int8
gives pictures to measure ranges on; without them that row is left out. RTMDet-tiny has random
weights, so its suppression sees few boxes: compare its networks.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from mmdet.registry import MODELS
from mmengine.hub import get_config as get_package_config
from mmengine.registry import DefaultScope
from torch import Tensor, nn

import gfl_det
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
from gfl_det.inference.export.evaluation import predict
from gfl_det.inference.export.onnx_file import require
from gfl_det.inference.foreign_weights import config_of, convert
from gfl_det.utils.files import write_json
from projects.calibration_study.tables import fraction, markdown
from projects.provenance import processor, provenance

RTMDET, RTMDET_SIZE = 'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py', 640
WARM_UP = 5  # rounds


class Contender(NamedTuple):
    """One row: what is timed; None: it does not do that."""

    name: str
    network: Callable[[], Any] | None
    whole: Callable[[], Any] | None


class Network(nn.Module):
    """Backbone, neck and head without decoding."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.backbone, self.neck = detector.backbone, detector.neck
        self.bbox_head = detector.bbox_head

    def forward(self, images: Tensor) -> list[Tensor]:
        return [
            level for maps in self.bbox_head(self.neck(self.backbone(images))) for level in maps
        ]


def write_network(network: nn.Module, size: int, path: Path) -> None:
    """Export a network alone, for its own time."""
    program = torch.onnx.export(
        network,
        (torch.randn(1, 3, size, size),),
        dynamo=True,
        input_names=['images'],
        verbose=False,
    )
    assert program is not None
    program.save(path, external_data=False)


def openvino_network(path: Path, threads: int, samples: Sequence[np.ndarray] = ()) -> Any:
    """A compiled network of OpenVINO; in int8 where there are samples to measure ranges on."""
    openvino = require('openvino')
    model = openvino.Core().read_model(path)
    if samples:
        nncf = require('nncf')
        data = nncf.Dataset(list(samples), lambda image: {'images': image})
        model = nncf.quantize(model, data, subset_size=len(samples))
    options = {'INFERENCE_PRECISION_HINT': 'f32', 'INFERENCE_NUM_THREADS': threads}
    return openvino.compile_model(model, 'CPU', options)


def onnx_network(path: Path, threads: int) -> Any:
    """A session of ONNX Runtime."""
    runtime = require('onnxruntime')
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    return runtime.InferenceSession(os.fspath(path), options, ['CPUExecutionProvider'])


def ncnn_network(
    pair: Sequence[str], threads: int, float32: bool = False
) -> Callable[[np.ndarray], np.ndarray]:
    """A forward pass of the runtime ncnn, as it is by default, or in float32 throughout."""
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads = threads
    if float32:
        for name in ('fp16_packed', 'fp16_storage', 'fp16_arithmetic', 'bf16_storage'):
            setattr(net.opt, f'use_{name}', False)
    net.load_param(pair[0])
    net.load_model(pair[1])

    def run(image: np.ndarray) -> np.ndarray:
        extractor = net.create_extractor()
        extractor.input('data', ncnn.Mat(image).clone())
        return np.array(extractor.extract('output')[1])

    return run


def ncnn_detector(
    run: Callable[[np.ndarray], np.ndarray], source: ExportSource, picture: np.ndarray
) -> Callable[[], Any]:
    """Ncnn's network between our preprocessing and our post-processing."""
    head = source.model.bbox_head

    def detect() -> Any:
        prepared = source.preprocessing([picture])
        output = torch.from_numpy(run(prepared.images[0])).T[None]
        height, width = prepared.images.shape[2:]
        sizes = [(-(-height // s), -(-width // s)) for s, _ in head.prior_generator.strides]
        levels = output.split([rows * columns for rows, columns in sizes], 2)
        maps = [level.unflatten(2, size) for level, size in zip(levels, sizes)]
        cls = [level[:, : head.num_classes].logit() for level in maps]  # ncnn gives scores
        edges = [level[:, head.num_classes :] for level in maps]
        meta = dict(img_shape=(height, width), scale_factor=tuple(prepared.scale_factor[0]))
        return head.predict_by_feat(cls, edges, batch_img_metas=[meta], rescale=True)

    return detect


def torch_rows(source: ExportSource, picture: np.ndarray) -> list[Contender]:
    """Our detector in torch, as it is and optimized."""
    prepared = source.preprocessing([picture])
    images = torch.from_numpy(prepared.images)
    rows = []
    fast = gfl_det.optimize_for_inference(source.model)
    for name, model in (('torch', source.model), ('torch, optimized', fast)):
        network = Network(model)
        rows.append(
            Contender(
                name,
                lambda network=network: network(images),
                lambda model=model: predict(model, source.preprocessing([picture])),
            )
        )
    return rows


def exported_rows(
    source: ExportSource,
    picture: np.ndarray,
    samples: Sequence[np.ndarray],
    threads: int,
    folder: Path,
) -> list[Contender]:
    """ONNX Runtime and OpenVINO, float32 and int8."""
    image = source.preprocessing([picture]).images
    size = image.shape[2], image.shape[3]
    settings = ExportSettings(Outputs(nms=True), size=size)
    description = write_onnx(source, folder / 'detector.onnx', settings)
    write_openvino(folder / 'detector.onnx', folder / 'float32.xml', description)
    write_network(Network(source.model), size[0], folder / 'network.onnx')
    session = onnx_network(folder / 'network.onnx', threads)
    onnx = OnnxDetector(folder / 'detector.onnx', threads=threads)
    compiled = openvino_network(folder / 'network.onnx', threads)
    float32 = OpenVINODetector(folder / 'float32.xml', threads=threads)
    rows = [
        Contender(
            'ONNX Runtime',
            lambda: session.run(None, {'images': image}),
            lambda: onnx.detect([picture]),
        ),
        Contender('OpenVINO', lambda: compiled([image]), lambda: float32.detect([picture])),
    ]
    if samples:
        inputs = [description.preprocessing([each]) for each in samples]
        path = folder / 'int8.xml'
        write_int8(folder / 'detector.onnx', path, description, inputs, len(inputs))
        ready = [each.images for each in inputs]
        small = openvino_network(folder / 'network.onnx', threads, ready)
        int8 = OpenVINODetector(path, threads=threads)
        rows.append(
            Contender('OpenVINO, int8', lambda: small([image]), lambda: int8.detect([picture]))
        )
    return rows


def rtmdet_rows(threads: int, folder: Path) -> list[Contender]:
    """RTMDet-tiny's network in torch and, exported, in both runtimes."""
    cfg = get_package_config(RTMDET)
    cfg.model.backbone.init_cfg = None
    with DefaultScope.overwrite_default_scope('mmdet'):
        network = Network(MODELS.build(cfg.model).eval().requires_grad_(False))
    images = torch.randn(1, 3, RTMDET_SIZE, RTMDET_SIZE)
    write_network(network, RTMDET_SIZE, folder / 'rtmdet.onnx')
    session = onnx_network(folder / 'rtmdet.onnx', threads)
    compiled = openvino_network(folder / 'rtmdet.onnx', threads)
    array = images.numpy()
    name = f'RTMDet-tiny at {RTMDET_SIZE}'
    return [
        Contender(f'{name}, torch', lambda: network(images), None),
        Contender(f'{name}, ONNX Runtime', lambda: session.run(None, {'images': array}), None),
        Contender(f'{name}, OpenVINO', lambda: compiled([array]), None),
    ]


@torch.inference_mode()
def measure(contenders: Sequence[Contender], rounds: int) -> dict[str, dict[str, float]]:
    """Medians in ms of each contender's network and of the whole, all in turns."""
    times: dict[tuple[str, str], list[float]] = {}
    for turn in range(WARM_UP + rounds):
        for contender in contenders:
            for part in ('network', 'whole'):
                function = getattr(contender, part)
                if function is None:
                    continue
                start = time.perf_counter()
                function()
                if turn >= WARM_UP:
                    elapsed = 1000 * (time.perf_counter() - start)
                    times.setdefault((contender.name, part), []).append(elapsed)
    medians: dict[str, dict[str, float]] = {each.name: {} for each in contenders}
    for (name, part), values in times.items():
        medians[name][part] = statistics.median(values)
    return medians


def table(runs: Sequence[dict[str, Any]]) -> str:
    """Medians in ms of each run, and times as shares of ncnn's, as Markdown."""
    rows = []
    for name, parts in runs[0]['ms'].items():
        cells = [name]
        beside_ncnn = 'whole' in parts  # the same detector
        for part in ('network', 'whole'):
            found = [run['ms'][name][part] for run in runs] if part in parts else []
            shares = [
                run['ms'][name][part] / run['ms']['ncnn'][part] for run in runs if beside_ncnn
            ]
            cells += [', '.join(f'{each:.1f}' for each in found)]
            cells += [', '.join(fraction(each, 2) for each in shares)]
        rows.append(cells)
    of_ncnn = "of ncnn's time"
    return markdown(['ms', 'network', of_ncnn, 'picture to boxes', of_ncnn], rows)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('pair', nargs=2, metavar='FILE', help='NAME.param NAME.bin')
    parser.add_argument('--picture', required=True, metavar='FILE')
    parser.add_argument('--int8', nargs='+', default=[], metavar='FILE', help='for ranges')
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--rounds', type=int, default=100)
    parser.add_argument('--out', type=Path, metavar='FILE.json')
    return parser.parse_args()


def main() -> None:
    """Measure and print a table."""
    args, origin = parse_arguments(), provenance()
    torch.set_num_threads(args.threads)
    picture = cv2.imread(args.picture)
    samples = [cv2.imread(path) for path in args.int8]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        name = config_of(args.pair[0])
        convert(args.pair, folder / 'weights.pth')
        source = load_source(gfl_det.get_config(name), name, str(folder / 'weights.pth'))
        run = ncnn_network(args.pair, args.threads)
        image = source.preprocessing([picture]).images[0]
        contenders = [
            *torch_rows(source, picture),
            *exported_rows(source, picture, samples, args.threads, folder),
            Contender('ncnn', lambda: run(image), ncnn_detector(run, source, picture)),
            *rtmdet_rows(args.threads, folder),
        ]
        medians = measure(contenders, args.rounds)
    content = dict(load=os.getloadavg()[0], threads=args.threads, rounds=args.rounds, ms=medians)
    if args.out:
        write_json(args.out, {**content, **origin}, indent=1)
    print(f'{processor()}, load {content["load"]:.1f}')
    print(table([content]))


if __name__ == '__main__':
    main()
