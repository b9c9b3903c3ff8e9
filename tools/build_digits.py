"""Build the embedded data set: real handwritten digits in synthetic scenes, as COCO JSON and PNG.

    python tools/build_digits.py
    python tools/build_digits.py --out data/digits --train 1000 --val 200 --seed 0 --preview

Nothing is downloaded. A data set that is already there with the same options is left as it is.
"""

try:
    from gfl_det.cli import digits
    from gfl_det.cli import main as cli
except ImportError as error:  # without gfl_det, or with a broken family
    raise SystemExit(f'error: {error}\npip install -e .  # or see: tools/doctor.py') from error


def main() -> None:
    digits.run(digits.parse_arguments())


if __name__ == '__main__':
    cli.run(main)
