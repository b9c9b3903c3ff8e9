"""Detection in very large sets of images with Ray Data.

Ray Data moves shards through two pools of actors: one reads and decodes, the other runs the
detector and writes. It schedules, restarts failed actors, and throttles the first pool when the
second is busy. This package ensures that repeated work gives the same files (:mod:`.shards`), and
that an image which crashes or stalls its process is found and skipped (:mod:`..careful`).
"""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from gfl_det.datasets.images import decode_image
from gfl_det.engine.training.checkpoints import best_checkpoint
from gfl_det.errors import ConfigError, DataError, SetupError
from gfl_det.inference.results import ImageResult
from gfl_det.inference.shards import Content, ResultFolder, Shard, ShardCounts, read_shard
from gfl_det.inference.sources import Item, with_channels
from gfl_det.inference.stream import WINDOW_BATCHES, ImageDetector
from gfl_det.utils.careful import Careful
from gfl_det.utils.config import load_config
from gfl_det.utils.files import file_sum

MAX_BLOCKS = 10_000  # blocks in Ray Data's plan: one shard each, or several in a larger run
# Ray Data holds back a stage whose output is more than twice the input of the next, but by default
# only once half of the object store is full: memory would then grow with the number of images.
os.environ.setdefault('RAY_DATA_DOWNSTREAM_CAPACITY_OBJECT_STORE_BUDGET_UTIL_THRESHOLD', '0')


class DetectorSettings(NamedTuple):
    """Settings from which each worker creates and runs its detector."""

    checkpoint: str
    config: str | None = None
    device: str | None = None
    score_thr: float | None = None
    level: float = 0.9
    calibrator: str | None = None
    intervals: str | None = None
    optimize: str | None = None
    batch_size: int = 1
    max_pixels: int | None = None
    threads: int = 1
    patience: float = 300.0  # seconds after which a window of images counts as stalled

    def resolved(self) -> DetectorSettings:
        """Replace work dirs by their best checkpoint and their config.

        A training that goes on may write a better checkpoint: all workers take the same one, and
        the manifest holds its checksum.
        """
        known: dict[str, Any] = {}
        if Path(self.checkpoint).is_dir():
            known['checkpoint'] = str(best_checkpoint(self.checkpoint))
        if self.config is not None and Path(self.config).is_dir():
            known['config'] = str(load_config(self.config).filename)
        return self._replace(**known)

    def manifest(self) -> dict[str, Any]:
        """Return the settings that determine the results, with files as checksums."""
        known = {key: value for key, value in self._asdict().items() if key != 'patience'}
        for key in ('checkpoint', 'config', 'calibrator', 'intervals'):
            path = known[key]
            if path is not None and Path(path).is_file():
                known[key] = file_sum(path)
        weights = Path(self.checkpoint).with_suffix('.bin')
        if Path(self.checkpoint).suffix == '.xml' and weights.is_file():
            known['checkpoint'] += file_sum(weights)
        return known


class Cluster(NamedTuple):
    """Ray cluster and its resources."""

    workers: int = 1
    gpus: float = 0.0  # per worker
    address: str | None = None  # address of a running cluster; None starts one on this machine


def make_detector(settings: DetectorSettings) -> ImageDetector:
    """Load a detector of any runtime: a checkpoint, an ``.onnx`` or an OpenVINO ``.xml``."""
    from gfl_det.inference.loading import EXPORTED

    torch.set_num_threads(settings.threads)
    ending = Path(settings.checkpoint).suffix
    if ending in EXPORTED:
        from gfl_det.inference.export import OnnxDetector, OpenVINODetector

        kind: Any = OnnxDetector if ending == '.onnx' else OpenVINODetector
        return kind(settings.checkpoint, threads=settings.threads)
    from gfl_det.inference.inferencer import GFLInferencer

    return GFLInferencer(
        settings.checkpoint,
        settings.config,
        device=settings.device,
        score_thr=settings.score_thr,
        level=settings.level,
        calibrator=settings.calibrator,
        intervals=settings.intervals,
        optimize=settings.optimize,
    )


@dataclass(frozen=True)
class ShardDecoding:
    """Decoding settings of the detector, for the first stage."""

    options: tuple[tuple[str, Any], ...]
    channels: int
    max_pixels: int | None

    def __call__(self, contents: Sequence[Content]) -> list[Item]:
        """Decode images; an image that cannot be decoded gives the reason instead."""
        items = []
        for name, content in contents:
            try:
                if isinstance(content, str):
                    raise DataError(content)
                image = decode_image(content, name, self.max_pixels, **dict(self.options))
                items.append(Item(name, None, with_channels(image, self.channels, name), None))
            except DataError as error:
                items.append(Item(name, None, None, str(error)))
        return items


class Detecting:
    """Detection in a window of images, in batches of equal size as in a stream."""

    def __init__(self, settings: DetectorSettings) -> None:
        self.detector, self._batch_size = make_detector(settings), settings.batch_size

    def __call__(self, items: Sequence[Item]) -> list[ImageResult]:
        return self.detector._detect(list(items), self._batch_size, False)


def _image_failed(item: Item, reason: str) -> ImageResult:
    return ImageResult(item.source, error=f'{item.source} was {reason}.')


def _content_failed(content: Content, reason: str) -> Item:
    return Item(content[0], None, None, f'{content[0]} was {reason}.')


class DecodeShard:
    """First stage: an actor that reads and decodes the images of a shard."""

    def __init__(self, folder: str, decoding: ShardDecoding, patience: float) -> None:
        self._folder, self._decoding, self._patience = ResultFolder(folder), decoding, patience

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        shard = pickle.loads(row['shard'])
        journal = self._folder.tries / f'{shard.part}.decode'
        careful = Careful(
            journal, partial(_same, self._decoding), _content_failed, self._patience, self._decoding
        )
        items = list(careful.run([[content] for content in read_shard(shard)]))
        return {'shard': row['shard'], 'items': pickle.dumps(items, protocol=5)}


def _same(value: ShardDecoding) -> ShardDecoding:
    return value


class DetectShard:
    """Second stage: an actor that runs the detector and commits shards."""

    def __init__(self, folder: str, settings: DetectorSettings) -> None:
        self._folder, self._settings = ResultFolder(folder), settings
        self._detecting = Detecting(settings)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        shard, items = pickle.loads(row['shard']), pickle.loads(row['items'])
        size = WINDOW_BATCHES * self._settings.batch_size
        windows = [items[begin : begin + size] for begin in range(0, len(items), size)]
        careful = Careful(
            self._folder.tries / f'{shard.part}.detect',
            partial(Detecting, self._settings),
            _image_failed,
            self._settings.patience,
            self._detecting,
        )
        counts = self._folder.commit(shard, list(careful.run(windows)))
        return counts._asdict()


def detect_many(
    shards: Sequence[Shard],
    out: str,
    settings: DetectorSettings,
    cluster: Cluster,
    tell: Callable[[ShardCounts], None] = lambda counts: None,
) -> ShardCounts:
    """Process the shards that are not done, and complete the manifest.

    Args:
        shards: Result of :func:`.shards.list_shards`.
        out: Folder of the results, accessible from all machines.
        settings: Detector settings.
        cluster: Ray cluster.
        tell: Function called after each shard.

    Returns:
        The sums over all shards, including those of earlier runs.

    Raises:
        SetupError: If Ray is not installed.
        GFLDetError: If the detector cannot be loaded, or the folder has results of another run.
    """
    try:
        import ray.data
    except ImportError as error:
        raise SetupError(
            'Ray is not installed: install it with pip install "gfl_det[ray]".'
        ) from error
    folder, settings = ResultFolder(out), settings.resolved()
    detector = make_detector(settings)  # fails before any work starts
    decoding = ShardDecoding(detector._decoding, detector._channels, settings.max_pixels)
    del detector
    pending = folder.start(shards, settings.manifest())
    if pending:
        started = not ray.is_initialized()
        try:
            _join(settings, cluster)
            for row in _rows(pending, folder, decoding, settings, cluster).iter_rows():
                tell(ShardCounts(**row))
        finally:
            if started:
                ray.shutdown()
    return folder.finish()


def _rows(
    pending: Sequence[Shard],
    folder: ResultFolder,
    decoding: ShardDecoding,
    settings: DetectorSettings,
    cluster: Cluster,
) -> Any:
    """Return the Ray data set of counts; iterating over its rows does the work."""
    import ray.data

    rows = [{'shard': pickle.dumps(shard)} for shard in pending]
    data = ray.data.from_items(rows, override_num_blocks=min(len(rows), MAX_BLOCKS))
    path = str(folder.path)
    decode: Any = DecodeShard  # Ray's type hints allow functions only
    detect: Any = DetectShard
    return data.map(
        decode,
        fn_constructor_args=(path, decoding, settings.patience),
        num_cpus=1,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=cluster.workers),
    ).map(
        detect,
        fn_constructor_args=(path, settings),
        num_cpus=settings.threads,
        num_gpus=cluster.gpus or None,
        compute=ray.data.ActorPoolStrategy(size=cluster.workers),
    )


def _join(settings: DetectorSettings, cluster: Cluster) -> None:
    """Join a cluster, or start one with room for the workers and as many decoders."""
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    for name in ('ray', 'ray.data'):
        logging.getLogger(name).setLevel(logging.ERROR)
    if ray.is_initialized():
        return
    if cluster.address:
        try:
            ray.init(address=cluster.address, log_to_driver=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f'The cluster {cluster.address} cannot be joined ({error}): correct --address.'
            ) from error
        return
    ray.init(
        num_cpus=cluster.workers * (settings.threads + 1),
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
    )
