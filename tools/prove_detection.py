"""Compare detectors by how true their scores are, raw and after each calibrator.

    python tools/prove_detection.py --run GFL configs/gfl_r18_fpn_bccd.py gfl.pth
                                    --run ATSS configs/calibration/atss_r18_fpn_bccd.py atss.pth
                                    [--halves N] [--cfg-options KEY=VALUE ...] [--out FILE.json]
    python tools/prove_detection.py --results GFL val.json val.bbox.json test.json test.bbox.json

Calibrators are fitted on the val split and judged on the test split; with --halves N on random
halves of the val split, N times. Prints two Markdown tables: all detections calibrated, as inside a
detector, and the published protocol, which cuts each class at its best LRP (and, for D-ECE, at .3).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # projects/ lies beside tools/

try:
    from gfl_det.cli import main as cli
    from projects.calibration_study import detection_command
except ImportError as error:  # without gfl_det, or with a broken family
    raise SystemExit(f'error: {error}\npip install -e .  # or see: tools/doctor.py') from error


def main() -> None:
    detection_command.prove(detection_command.parse_arguments())


if __name__ == '__main__':
    cli.run(main)
