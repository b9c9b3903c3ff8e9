"""The model of gfl_r50_fpn_1x_coco with weights, gradients and moments sharded over the GPUs."""

_base_ = './gfl_r50_fpn_1x_coco.py'

# mmengine's runner with strategies; tools/dist_train.sh starts it as any other config.
runner_type = 'FlexibleRunner'
strategy = dict(
    type='FSDPStrategy',
    model_wrapper=dict(
        type='gfl_det.ShardedDataParallel',  # FSDP refuses the scalars of the head's scales
        use_orig_params=True,  # the frozen stages need no gradient
    ),
    state_dict_cfg='full',  # checkpoints are those of one process
)
# By value: the norm of a shard is not that of a gradient.
optim_wrapper = dict(clip_grad=dict(_delete_=True, type='value', clip_value=35))
