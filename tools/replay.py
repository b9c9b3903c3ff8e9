"""Repeat a training step that the loss guard has written.

    python tools/replay.py work_dirs/NAME/non_finite/iter_N_rank_0.pt [--config CONFIG]
                           [--device DEVICE]

Prints its losses then and now, the first module that gave infinite or NaN values, and which
gradients did. Exit status 0 if the losses are the same, 3 if they are not.
"""

try:
    from gfl_det.cli import main as cli
    from gfl_det.cli import replay
except ImportError as error:  # without gfl_det, or with a broken family
    raise SystemExit(f'error: {error}\npip install -e .  # or see: tools/doctor.py') from error


def main() -> None:
    status = replay.run(replay.parse_arguments())
    if status:
        raise SystemExit(status)


if __name__ == '__main__':
    cli.run(main)
