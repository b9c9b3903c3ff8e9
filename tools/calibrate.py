"""Fit a calibrator of detection scores, apply it to results, and show what it does.

    python tools/calibrate.py fit CALIBRATOR.json --truths minival.json --results minival.bbox.json
                                  [--method isotonic|linear|platt|temperature|identity] [--tau T]
                                  [--target iou|precision] [--raw-cut SCORE|lrp] [--class-agnostic]
                                  [--score-type HEAD]
    python tools/calibrate.py apply CALIBRATOR.json --truths test.json --results test.bbox.json
                                    --out calibrated.bbox.json
    python tools/calibrate.py report CALIBRATOR.json --truths test.json --results test.bbox.json
                                     --out DIR

Results are those of tools/test.py --out FILE.json. A detector applies a calibrator by itself with
--cfg-options model.test_cfg.calibrator=CALIBRATOR.json.
"""

try:
    from gfl_det import cli
    from gfl_det.calibration import command
except ImportError as error:  # without gfl_det, or with a broken family
    raise SystemExit(f'error: {error}\npip install -e .  # or see: tools/doctor.py') from error


def main() -> None:
    args = command.parse_arguments()
    dict(fit=command.fit, apply=command.apply, report=command.report)[args.command](args)


if __name__ == '__main__':
    cli.run(main)
