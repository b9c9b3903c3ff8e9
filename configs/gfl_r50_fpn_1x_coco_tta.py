"""GFL with ResNet-50, tested on each image at three sizes and mirrored: tools/test.py --tta.

Takes the checkpoints of gfl_r50_fpn_1x_coco. Another model: name its config as _base_ here. After a
short training on blood cells it brought no AP: more was found and placed less well (results on
accuracy).
"""

_base_ = './gfl_r50_fpn_1x_coco.py'

# The boxes of all views go through one NMS, with the threshold of the model's own.
tta_model = dict(
    type='DetTTAModel',
    tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.6), max_per_img=100),
)
# Six views: half, one and a half times and the usual size, each as it is and mirrored.
tta_pipeline = [
    dict(type='LoadImageFromFile', backend_args=_base_.backend_args),
    dict(
        type='TestTimeAug',
        transforms=[
            [
                dict(type='Resize', scale=scale, keep_ratio=True)
                for scale in [(1333, 800), (666, 400), (2000, 1200)]
            ],
            [dict(type='RandomFlip', prob=1.0), dict(type='RandomFlip', prob=0.0)],
            [dict(type='LoadAnnotations', with_bbox=True)],
            [
                dict(
                    type='PackDetInputs',
                    meta_keys=(
                        *('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
                        *('flip', 'flip_direction'),
                    ),
                )
            ],
        ],
    ),
]
