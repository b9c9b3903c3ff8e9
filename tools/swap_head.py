"""Put a GFL head into the config of another detector.

    python tools/swap_head.py CONFIG [--head GFLHead|GFLv2Head] [--out FILE] [--check]
                              [--weights CHECKPOINT] [--num-classes N] [--target rpn_head]
    python tools/swap_head.py mmdet::retinanet/retinanet_r50_fpn_1x_coco.py --check
    python tools/swap_head.py --zoo [--head NAME] [--out FILE]

CONFIG is a file, the name of a shipped config, or mmdet::FOLDER/NAME.py. Every change is printed
with its reason; --zoo, in a checkout, tries every single-stage config that MMDetection ships.
"""

import sys
from pathlib import Path

try:
    from gfl_det.cli import main as cli
    from gfl_det.cli import swap_head
except ImportError as error:  # without gfl_det, or with a broken family
    raise SystemExit(f'error: {error}\npip install -e .  # or see: tools/doctor.py') from error


def main() -> None:
    if '--zoo' in sys.argv:
        sys.path.append(str(Path(__file__).resolve().parents[1]))
        from projects.zoo import sweep

        sweep.try_zoo(sweep.parse_arguments())
    else:
        swap_head.run(swap_head.parse_arguments())


if __name__ == '__main__':
    cli.run(main)
