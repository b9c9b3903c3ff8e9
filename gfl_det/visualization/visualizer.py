"""Visualizer for mmengine's hooks, mmdet's inferencer and the tools."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_flip
from mmdet.visualization import DetLocalVisualizer
from mmengine.dist import master_only

from gfl_det.errors import DataError
from gfl_det.registry import VISUALIZERS
from gfl_det.visualization.picture import Boxes, draw_boxes, side_by_side

# Sample fields that mmdet's visualizer draws and this one does not.
OTHER_PARTS = ('gt_sem_seg', 'gt_panoptic_seg', 'pred_sem_seg', 'pred_panoptic_seg')

JPEG_QUALITY = 85


@VISUALIZERS.register_module()
class GFLVisualizer(DetLocalVisualizer):
    """Draws boxes with soft edges, and ground truth beside predictions, without a display.

    A drop-in replacement for mmdet's ``DetLocalVisualizer`` in configs and hooks. Edges are soft if
    results hold distributions (``test_cfg.with_distribution=True`` of a GFL head), lines otherwise.
    Samples with masks or segmentations are drawn by mmdet.

    Args:
        name: Name by which mmengine finds the instance.
        soft: Draw soft edges; False draws lines only.
        scale: Enlargement factor; None: enlarge small images until labels are legible.
        **kwargs: Arguments of mmdet's visualizer: vis_backends, save_dir and others.
    """

    def __init__(
        self,
        name: str = 'visualizer',  # mmengine checks for this argument
        *,
        soft: bool = True,
        scale: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(name, **kwargs)
        self.soft = soft
        self.scale = scale

    @master_only
    def add_datasample(
        self,
        name: str,
        image: np.ndarray,
        data_sample: DetDataSample | None = None,
        draw_gt: bool = True,
        draw_pred: bool = True,
        show: bool = False,
        wait_time: float = 0,
        out_file: str | None = None,
        pred_score_thr: float = 0.3,
        step: int = 0,
    ) -> None:
        """Draw a sample, and save or log the picture.

        Args:
            name: Name of the picture.
            image: ``(H, W, 3)`` RGB in 0..255, the image that boxes refer to.
            data_sample: Sample with ``gt_instances``, ``pred_instances`` or both.
            draw_gt: Draw the gt boxes, if any.
            draw_pred: Draw the detections.
            show: Open a window.
            wait_time: Time the window stays open, s; 0: until a key is pressed.
            out_file: Output file; None: the picture goes to the back ends.
            pred_score_thr: Minimum score of drawn detections.
            step: Training step, for the back ends.

        Raises:
            DataError: If ``out_file`` cannot be written.
        """
        if data_sample is not None and _is_segmented(data_sample):
            super().add_datasample(
                name, image, data_sample, draw_gt, draw_pred, show, wait_time, out_file,
                pred_score_thr, step,
            )  # fmt: skip
            return
        image = image.clip(0, 255).astype(np.uint8)
        picture = self.draw(image, data_sample, draw_gt, draw_pred, pred_score_thr)
        self.set_image(picture)
        if show:
            self.show(picture, win_name=name, wait_time=wait_time)
        if out_file is not None:
            save_picture(picture, Path(out_file))
        else:
            self.add_image(name, picture, step)

    def draw(
        self,
        image: np.ndarray,
        sample: DetDataSample | None,
        draw_gt: bool = True,
        draw_pred: bool = True,
        score_thr: float = 0.3,
    ) -> np.ndarray:
        """Draw a sample's boxes: gt boxes, detections, or both side by side.

        Args:
            image: ``(H, W, 3)`` uint8 RGB.
            sample: Sample as for :meth:`add_datasample`.
            draw_gt: Draw the gt boxes.
            draw_pred: Draw the detections.
            score_thr: Minimum score of detections.

        Returns:
            Picture, uint8 RGB.
        """
        classes = (self.dataset_meta or {}).get('classes')
        parts = []
        if sample is not None and draw_gt and 'gt_instances' in sample:
            boxes = Boxes.of(_upright(sample))
            parts.append((f'ground truth: {_count(boxes)}', boxes))
        if sample is not None and draw_pred and 'pred_instances' in sample:
            boxes = Boxes.of(sample.pred_instances, score_thr)
            parts.append((f'prediction: {_count(boxes)} of score {score_thr:.2f} or more', boxes))
        panels = [
            (title, draw_boxes(image, boxes, classes, self.scale, self.soft))
            for title, boxes in parts
        ]
        if not panels:
            return image
        return side_by_side(panels) if len(panels) > 1 else panels[0][1]


def save_picture(picture: np.ndarray, path: Path) -> None:
    """Write an RGB picture; the folder is created if missing.

    Raises:
        DataError: If the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        bgr = np.ascontiguousarray(picture[..., ::-1])
        is_jpeg = str(path).lower().endswith(('.jpg', '.jpeg'))
        quality = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if is_jpeg else []
        written = cv2.imwrite(str(path), bgr, quality)
    except (OSError, cv2.error):  # cv2.error: no encoder for this extension
        written = False
    if not written:
        raise DataError(f'{path} cannot be written: name a .png or .jpg file in a writable folder.')


def _is_segmented(sample: DetDataSample) -> bool:
    parts = [sample.get(key) for key in ('gt_instances', 'pred_instances')]
    masks = any(part is not None and 'masks' in part for part in parts)
    return masks or any(part in sample for part in OTHER_PARTS)


def _upright(sample: DetDataSample) -> Any:
    """Gt boxes in image coordinates, undoing flips of test-time augmentation."""
    gts = sample.gt_instances
    if not sample.get('flip', False):
        return gts
    gts = gts.clone()
    boxes = getattr(gts.bboxes, 'tensor', gts.bboxes)
    gts.bboxes = bbox_flip(boxes, sample.img_shape, sample.flip_direction)
    return gts


def _count(boxes: Boxes) -> str:
    number = len(boxes.boxes)
    return f'{number} box' if number == 1 else f'{number} boxes'
