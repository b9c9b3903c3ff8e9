"""One config of each family of MMDetection's zoo: swapped, trained for a step, asked for boxes."""

from __future__ import annotations

import pytest

import gfl_det
from gfl_det.swap.swap import check_config
from tests.helpers.initial_weights import take_from_one_block
from tests.helpers.swapping import zoo_config

FAMILIES = {
    'ATSS': 'atss/atss_r50_fpn_1x_coco',
    'AutoAssign': 'autoassign/autoassign_r50-caffe_fpn_1x_coco',
    'CenterNet2 style': 'centernet/centernet-update_r50_fpn_8xb8-amp-lsj-200e_coco',
    'DDOD': 'ddod/ddod_r50_fpn_1x_coco',
    'FCOS': 'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco',
    'FoveaBox': 'foveabox/fovea_r50_fpn_4xb4-1x_coco',
    'FreeAnchor': 'free_anchor/freeanchor_r50_fpn_1x_coco',
    'FSAF': 'fsaf/fsaf_r50_fpn_1x_coco',
    'GFL': 'gfl/gfl_r50_fpn_1x_coco',
    'guided anchoring': 'guided_anchoring/ga-retinanet_r50-caffe_fpn_1x_coco',
    'Libra': 'libra_rcnn/libra-retinanet_r50_fpn_1x_coco',
    'NAS-FPN': 'nas_fpn/retinanet_r50_nasfpn_crop640-50e_coco',
    'PAA': 'paa/paa_r50_fpn_1x_coco',
    'PISA': 'pisa/retinanet-r50_fpn_pisa_1x_coco',
    'RepPoints': 'reppoints/reppoints-moment_r50_fpn_1x_coco',
    'RetinaNet': 'retinanet/retinanet_r50_fpn_1x_coco',
    'RTMDet': 'rtmdet/rtmdet_tiny_8xb32-300e_coco',
    'SABL': 'sabl/sabl-retinanet_r50_fpn_1x_coco',
    'SSDLite': 'ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco',
    'TOOD': 'tood/tood_r50_fpn_1x_coco',
    'VFNet': 'vfnet/vfnet_r50_fpn_1x_coco',
    'YOLOF': 'yolof/yolof_r50-c5_8xb8-1x_coco',
    'YOLOv3': 'yolo/yolov3_mobilenetv2_8xb24-320-300e_coco',
    'YOLOX': 'yolox/yolox_nano_8xb8-300e_coco',
    # With deformable convolutions in the neck:
    'DyHead': 'dyhead/atss_r50-caffe_fpn_dyhead_1x_coco',
    'NAS-FCOS': 'nas_fcos/nas-fcos_r50-caffe_fpn_nashead-gn-head_4xb4-1x_coco',
}


@pytest.mark.parametrize('family', FAMILIES)
def test_trains_and_predicts(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    take_from_one_block(monkeypatch)
    swap = gfl_det.swap_head(zoo_config(FAMILIES[family]))
    outcome = check_config(swap.config, swap.pyramid.side)
    assert all(outcome.losses[name] > 0 for name in ('loss_cls', 'loss_bbox', 'loss_dfl'))
    assert outcome.losses['loss_cls'] < 10
    assert outcome.detections > 0
