"""Show what a box's edges and neighbours tell of its IoU that its score does not.

    python tools/prove_distribution.py NAME CONFIG CHECKPOINT [CHECKPOINT ...]
                                       [--splits val test] [--seeds 5] [--suppressions]
                                       [--cfg-options KEY=VALUE ...] [--out FILE.json]

Runs a GFL detector on held-out images, cuts them in two at random, fits isotonic regression and
distribution calibrators on one half and judges them on the other. Prints a Markdown table.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # projects/ lies beside tools/

try:
    from gfl_det.cli import main as cli
    from projects.calibration_study import distribution_command
except ImportError as error:  # without gfl_det, or with a broken family
    raise SystemExit(f'error: {error}\npip install -e .  # or see: tools/doctor.py') from error


def main() -> None:
    distribution_command.prove(distribution_command.parse_arguments())


if __name__ == '__main__':
    cli.run(main)
