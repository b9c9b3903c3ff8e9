"""Overfit check before the long training: does this config learn a few pictures at all?

    python tools/sanity.py CONFIG [--images 8] [--steps 200] [--from-scratch] [--device DEVICE]
                           [--json FILE] [--cfg-options KEY=VALUE ...]

The loss must fall by 90 % and AP on the pictures reach .9. Else, or where boxes or labels have
nothing to do with the pictures, the part that looks wrong is named: labels, boxes, learning rate.
"""

try:
    from gfl_det.cli import main as cli
    from gfl_det.cli import sanity
except ImportError as error:  # without gfl_det, or with a broken family
    raise SystemExit(f'error: {error}\npip install -e .  # or see: tools/doctor.py') from error


def main() -> None:
    status = sanity.run(sanity.parse_arguments())
    if status:
        raise SystemExit(status)


if __name__ == '__main__':
    cli.run(main)
