"""Compare training losses by how true a classifier's probabilities are.

    python tools/prove_classification.py [--seeds 5] [--noise 0.1] [--epochs 80] [--out FILE.json]

Trains a small network on scikit-learn's digits, some of them labelled wrong, with cross entropy,
Brier, MMCE, label smoothing, two focal losses and inverse focal loss. Prints a Markdown table of
the error, ECE, AdaECE and NLL before and after temperature scaling, and what becomes of the papers'
claims; a minute or two on one core, nothing is downloaded.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # projects/ lies beside tools/

try:
    from gfl_det.cli import main as cli
    from projects.calibration_study import classification_command
except ImportError as error:  # without gfl_det, or with a broken family
    raise SystemExit(f'error: {error}\npip install -e .  # or see: tools/doctor.py') from error


def main() -> None:
    classification_command.prove(classification_command.parse_arguments())


if __name__ == '__main__':
    cli.run(main)
