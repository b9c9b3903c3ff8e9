"""Fit a calibrator of edge intervals, and measure what share of true edges they hold.

    python tools/intervals.py fit INTERVALS.json CHECKPOINT --truths val.json --images DIR
                                  [--half first|second] [--seed N] [--config CONFIG] [--device NAME]
                                  [--batch-size N]
    python tools/intervals.py measure INTERVALS.json CHECKPOINT --truths test.json --images DIR
                                      [--out PNG] [the same options]

A detector applies it by itself: tools/infer.py --intervals INTERVALS.json, or in any other tool
--cfg-options model.test_cfg.interval_level=0.9 model.test_cfg.interval_calibrator=INTERVALS.json.
"""

try:
    from gfl_det.cli import intervals
    from gfl_det.cli import main as cli
except ImportError as error:  # without gfl_det, or with a broken family
    raise SystemExit(f'error: {error}\npip install -e .  # or see: tools/doctor.py') from error


def main() -> None:
    intervals.run(intervals.parse_arguments())


if __name__ == '__main__':
    cli.run(main)
