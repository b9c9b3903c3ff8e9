"""Train a detector.

    python tools/train.py CONFIG [--work-dir DIR] [--resume [CHECKPOINT]] [--amp] [--channels-last]
                                 [--no-scale-lr] [--loss-guard stop|skip|off] [--from-scratch]
                                 [--pictures [N]] [--log-to tensorboard|wandb ...]
                                 [--cfg-options KEY=VALUE ...] [--launcher NAME]

CONFIG is a file or the name of a shipped config: gfl_r50_fpn_1x_coco. On several GPUs:
tools/dist_train.sh, tools/slurm_train.sh.
"""

try:
    import torch

    from gfl_det.cli import main as cli
    from gfl_det.engine import config_edits, preflight, runner
    from gfl_det.utils.config import load_config
except ImportError as error:  # without gfl_det, or with a broken family
    raise SystemExit(f'error: {error}\npip install -e .  # or see: tools/doctor.py') from error


def main() -> None:
    args = cli.parse_train_arguments()
    cfg = load_config(args.config, args.cfg_options)
    config_edits.set_work_dir(cfg, args.work_dir, args.config)
    if args.amp:
        config_edits.use_amp(cfg, has_gpu=torch.cuda.is_available())
    if args.channels_last:
        config_edits.use_channels_last(cfg)
    if args.from_scratch:
        config_edits.train_from_scratch(cfg)
        print(config_edits.SCRATCH_NOTE)
    config_edits.log_assignment(cfg)
    if args.pictures is not None:
        config_edits.draw_sample(cfg, args.pictures)
    config_edits.log_to(cfg, args.log_to)
    config_edits.protect(cfg, args.loss_guard)
    facts = config_edits.resume(cfg, args.resume)
    facts.append(config_edits.scale_learning_rate(cfg, args.launcher, args.scale_lr))
    preflight.check_training(cfg)
    cli.tell(facts)
    runner.build_runner(cfg, args.launcher).train()


if __name__ == '__main__':
    cli.run(main)
