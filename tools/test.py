"""Test a detector: print the COCO table, write detections and pictures.

    python tools/test.py CONFIG CHECKPOINT [--work-dir DIR] [--show-dir DIR] [--out FILE] [--tta]
                         [--classwise] [--optimize [DTYPE]] [--cfg-options KEY=VALUE ...]
                         [--launcher NAME]

CONFIG is a file or the name of a shipped config, CHECKPOINT a file or an address. --out writes
samples to a .pkl or COCO results to a .json. On several GPUs: tools/dist_test.sh.
"""

try:
    from gfl_det.cli import main as cli
    from gfl_det.cli import test
except ImportError as error:  # without gfl_det, or with a broken family
    raise SystemExit(f'error: {error}\npip install -e .  # or see: tools/doctor.py') from error


def main() -> None:
    test.run(test.parse_arguments())


if __name__ == '__main__':
    cli.run(main)
