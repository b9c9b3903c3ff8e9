"""Write one self-contained page about a detector: report.html.

    python tools/report.py WORK_DIR [--split val|test] [--config CONFIG] [--checkpoint CHECKPOINT]
                           [--cfg-options KEY=VALUE ...]
    python tools/report.py RESULTS.json --truths ANNOTATIONS.json [--images DIR] [--logs WORK_DIR]
                           both: [--out report.html] [--calibrator JSON] [--pictures N] [--title T]

It opens without a network: COCO's table with sizes and classes, F1 and thresholds,
precision-recall, reliability before and after calibration, uncertainty against error, kinds of
errors, confusion matrix, training curves, the best and the worst images by class and kind of error.
"""

try:
    from gfl_det.cli import main as cli
    from gfl_det.cli import report
except ImportError as error:  # without gfl_det, or with a broken family
    raise SystemExit(f'error: {error}\npip install -e .  # or see: tools/doctor.py') from error


def main() -> None:
    report.run(report.parse_arguments())


if __name__ == '__main__':
    cli.run(main)
