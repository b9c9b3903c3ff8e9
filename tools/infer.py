"""Detect in images, folders, videos and what addresses give.

    python tools/infer.py CHECKPOINT INPUT [INPUT ...] [--config CONFIG] [--out FILE]
                          [--annotations JSON] [--show-dir DIR] [--show-thr S] [--score-thr S]
                          [--level L] [--calibrator JSON] [--intervals JSON] [--device NAME]
                          [--batch-size N] [--optimize [DTYPE]] [--recursive] [--every N]
                          [--max-pixels N] [--quiet]

The config is read from the checkpoint, as data, where mmengine wrote it there. --out writes COCO
results (.json) or a table (.csv). Images that cannot be read are named, the others are done; the
exit status is 1 then.
"""

try:
    from gfl_det.cli import infer
    from gfl_det.cli import main as cli
except ImportError as error:  # without gfl_det, or with a broken family
    raise SystemExit(f'error: {error}\npip install -e .  # or see: tools/doctor.py') from error


def main() -> None:
    infer.run(infer.parse_arguments())


if __name__ == '__main__':
    cli.run(main)
