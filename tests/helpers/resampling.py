"""Made-up detectors on made-up images, for bootstraps and comparisons."""

from __future__ import annotations

import numpy as np

from gfl_det.evaluation.detections import Detections, GroundTruth


def made_up(images: int, seed: int, per_image: int = 10, classes: int = 2) -> tuple:
    """Detections near most of three gt boxes per image, and others of low scores anywhere."""
    rng = np.random.default_rng(seed)
    number = images * 3
    image = np.repeat(np.arange(images), 3)
    label = rng.integers(0, classes, number)
    boxes = np.c_[rng.uniform(0, 400, (number, 2)), rng.uniform(20, 150, (number, 2))]
    names = [str(k) for k in range(classes)]
    gts = GroundTruth(
        list(range(images)),
        [''] * images,
        list(range(classes)),
        names,
        image,
        label,
        boxes,
        rng.random(number) < 0.05,
    )
    hit = rng.random(number) < 0.8
    near = boxes[hit] + rng.normal(0, 4, (hit.sum(), 4))
    near[:, 2:] = np.maximum(near[:, 2:], 2)
    rest = images * per_image - hit.sum()
    far = np.c_[rng.uniform(0, 400, (rest, 2)), rng.uniform(20, 150, (rest, 2))]
    detections = Detections(
        np.r_[image[hit], rng.integers(0, images, rest)],
        np.r_[label[hit], rng.integers(0, classes, rest)],
        np.r_[near, far],
        np.r_[rng.beta(6, 2, hit.sum()), rng.beta(1, 6, rest)],
    )
    return detections, gts


def make_gts(images: int, seed: int, classes: int = 2) -> GroundTruth:
    """Three gt boxes per image."""
    return made_up(images, seed, 3, classes)[1]


def detect(gts: GroundTruth, seed: int, noise: float | np.ndarray = 4.0) -> Detections:
    """A detector of these gt boxes; ``noise`` of its edges in px, of all boxes or of each."""
    rng = np.random.default_rng(seed)
    number, images = len(gts.label), len(gts.image_ids)
    hit = rng.random(number) < 0.85
    spread = np.broadcast_to(noise, number)[:, None]
    near = (gts.boxes + rng.normal(0, 1, (number, 4)) * spread)[hit]
    near[:, 2:] = np.maximum(near[:, 2:], 2)
    rest = 3 * images
    far = np.c_[rng.uniform(0, 400, (rest, 2)), rng.uniform(20, 150, (rest, 2))]
    return Detections(
        np.r_[gts.image[hit], rng.integers(0, images, rest)],
        np.r_[gts.label[hit], rng.integers(0, len(gts.category_ids), rest)],
        np.r_[near, far],
        np.r_[rng.beta(6, 2, hit.sum()), rng.beta(1, 6, rest)],
    )


def repeated(detections: Detections, gts: GroundTruth, weights: np.ndarray) -> tuple:
    """The data with each image as often as its weight says, copies one after the other."""
    images = np.repeat(np.arange(len(weights)), weights.astype(int))
    found, kept = [], []
    for new, old in enumerate(images):
        rows = np.flatnonzero(detections.image == old)
        found.append(detections.take(rows)._replace(image=np.full(len(rows), new)))
        rows = np.flatnonzero(gts.image == old)
        kept.append([np.full(len(rows), new), *(each[rows] for each in gts[5:])])
    fields = [np.concatenate(each) for each in zip(*kept)]
    ids = list(range(len(images)))
    many = gts._replace(image_ids=ids, image_keys=[''] * len(ids))
    many = many._replace(image=fields[0], label=fields[1], boxes=fields[2], crowd=fields[3])
    return Detections(*(np.concatenate(each) for each in zip(*found))), many
