"""Draw the detections of images with soft edges, and bar charts of their edges.

    python tools/show.py CHECKPOINT IMAGE [IMAGE ...] [--config CONFIG] [--out DIR] [--score-thr S]
                         [--truths JSON] [--edges [BOX ...]] [--format png|jpg|pdf|svg]
                         [--calibrator JSON] [--device NAME] [--max-pixels N]

IMAGE is what tools/infer.py takes. Writes DIR/IMAGE.png, with --truths the ground truth beside it,
and with --edges DIR/IMAGE.edges.png: where the head thinks that each edge of a box lies. A whole
test set is drawn by tools/test.py --show-dir.
"""

try:
    from gfl_det.cli import main as cli
    from gfl_det.cli import show
except ImportError as error:  # without gfl_det, or with a broken family
    raise SystemExit(f'error: {error}\npip install -e .  # or see: tools/doctor.py') from error


def main() -> None:
    show.run(show.parse_arguments())


if __name__ == '__main__':
    cli.run(main)
