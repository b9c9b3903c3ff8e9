"""Suggest reg_max, strides and anchor scale for your own boxes.

    python tools/suggest_reg_max.py ANNOTATIONS [--config CONFIG] [--scale W H] [--strides S ...]
                                    [--anchor-scale X] [--reg-max N] [--out DIR]
    python tools/suggest_reg_max.py data/mine/train.json --scale 1333 800
    python tools/suggest_reg_max.py data/mine/train.json --config mine.py

ANNOTATIONS is a COCO JSON. Prints what each level reaches, what each reg_max clips, which gt boxes
get no positive, and the least change that helps; writes reach.json and reach.png into DIR.
"""

try:
    from gfl_det.cli import main as cli
    from gfl_det.cli import suggest_reg_max
except ImportError as error:  # without gfl_det, or with a broken family
    raise SystemExit(f'error: {error}\npip install -e .  # or see: tools/doctor.py') from error


def main() -> None:
    suggest_reg_max.run(suggest_reg_max.parse_arguments())


if __name__ == '__main__':
    cli.run(main)
