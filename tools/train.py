"""Train a detector.

    python tools/train.py CONFIG [--work-dir DIR] [--resume [CHECKPOINT]] [--amp] [--channels-last]
                                 [--no-scale-lr] [--loss-guard stop|skip|off] [--from-scratch]
                                 [--pictures [N]] [--log-to tensorboard|wandb ...]
                                 [--cfg-options KEY=VALUE ...] [--launcher NAME]

CONFIG is a file or the name of a shipped config: gfl_r50_fpn_1x_coco. On several GPUs:
tools/dist_train.sh, tools/slurm_train.sh.
"""

try:
    from gfl_det.cli import main as cli
    from gfl_det.cli import train
except ImportError as error:  # without gfl_det, or with a broken family
    raise SystemExit(f'error: {error}\npip install -e .  # or see: tools/doctor.py') from error


def main() -> None:
    train.run(train.parse_arguments())


if __name__ == '__main__':
    cli.run(main)
