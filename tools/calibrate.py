"""Fit a calibrator of detection scores, apply it to results, and show what it does.

    python tools/calibrate.py fit CALIBRATOR.json --config CONFIG --checkpoint CHECKPOINT
                                  [--split val|test] [--half first|second [--seed N]]
                                  [--cfg-options KEY=VALUE ...]
                                  [--method isotonic|linear|platt|temperature|identity] [--tau T]
                                  [--target iou|precision] [--raw-cut SCORE|lrp] [--class-agnostic]
                                  [--quality-focal] [--grid] [--score-type HEAD]
    python tools/calibrate.py report CALIBRATOR.json --config CONFIG --checkpoint CHECKPOINT
                                     --out DIR [--split ...] [--half ...] [--cfg-options ...]
    python tools/calibrate.py apply CALIBRATOR.json --truths test.json --results test.bbox.json
                                    --out calibrated.bbox.json

fit runs the detector on the config's val split and report on its test split. Where both are one,
fit with --half first and report with --half second. All three take --truths and --results, what
tools/test.py --out FILE.json wrote, in place of --config and --checkpoint. A detector applies a
calibrator by itself with --cfg-options model.test_cfg.calibrator=CALIBRATOR.json.

--method distribution predicts the IoU of a box from its score, the distributions of its edges and
its overlap with better boxes (--evidence takes some of these); it needs --config and --checkpoint.
"""

try:
    from gfl_det.cli import calibrate
    from gfl_det.cli import main as cli
except ImportError as error:  # without gfl_det, or with a broken family
    raise SystemExit(f'error: {error}\npip install -e .  # or see: tools/doctor.py') from error


def main() -> None:
    calibrate.run(calibrate.parse_arguments())


if __name__ == '__main__':
    cli.run(main)
