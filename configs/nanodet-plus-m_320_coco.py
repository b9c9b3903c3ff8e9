"""NanoDet-Plus-m at 320 px: the model and recipe of 416 px on smaller pictures."""

_base_ = ['./nanodet-plus-m_416_coco.py']

image_scale = (320, 320)

train_pipeline = _base_.train_pipeline
train_pipeline[2].scale = image_scale
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = image_scale

train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
