"""Take the weights out of a training checkpoint.

    python tools/weights.py CHECKPOINT OUT [--kind averaged|trained]

Without optimizer and history, for tests, exports and other trainings; of a training with averaged
weights (EMA) the averages, or what the optimizer left.
"""

try:
    from gfl_det.cli import main as cli
    from gfl_det.cli import weights
except ImportError as error:  # without gfl_det, or with a broken family
    raise SystemExit(f'error: {error}\npip install -e .  # or see: tools/doctor.py') from error


def main() -> None:
    weights.extract(weights.make_extract_parser().parse_args())


if __name__ == '__main__':
    cli.run(main)
