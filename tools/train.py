"""Train a detector.

    python tools/train.py CONFIG [--work-dir DIR] [--resume [CHECKPOINT]] [--amp] [--channels-last]
                                 [--auto-scale-lr] [--from-scratch] [--cfg-options KEY=VALUE ...]
                                 [--launcher NAME]

CONFIG is a file or the name of a shipped config: gfl_r50_fpn_1x_coco. On several GPUs:
tools/dist_train.sh, tools/slurm_train.sh.
"""

try:
    import torch

    from gfl_det import cli, launch, options, preflight
except ImportError as error:  # without gfl_det, or with a broken family
    raise SystemExit(f'error: {error}\npip install -e .  # or see: tools/doctor.py') from error


def main() -> None:
    args = cli.parse_train_arguments()
    cfg = cli.load_config(args.config, args.cfg_options)
    options.set_work_dir(cfg, args.work_dir, args.config)
    if args.amp:
        options.use_amp(cfg, has_gpu=torch.cuda.is_available())
    if args.channels_last:
        options.use_channels_last(cfg)
    if args.auto_scale_lr:
        options.scale_learning_rate(cfg)
    if args.from_scratch:
        options.train_from_scratch(cfg)
        print(options.SCRATCH_NOTE)
    options.log_assignment(cfg)
    options.resume(cfg, args.resume)
    preflight.check_training(cfg)
    launch.build_runner(cfg, args.launcher).train()


if __name__ == '__main__':
    cli.run(main)
