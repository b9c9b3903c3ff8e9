"""Draw the detections of images with soft edges, and bar charts of their edges.

    python tools/show.py CONFIG CHECKPOINT IMAGE ... [--out DIR] [--score-thr S] [--truths JSON]
                         [--edges [BOX ...]] [--format png|jpg|pdf|svg] [--device DEVICE]
                         [--cfg-options KEY=VALUE ...]

IMAGE is a file or a folder. Writes DIR/IMAGE.png, with --truths truth beside prediction, and with
--edges DIR/IMAGE.edges.png: where the head thinks that each edge of a box lies. A whole test set
is drawn by tools/test.py --show-dir.
"""

try:
    from gfl_det import cli
    from gfl_det.visualization import command
except ModuleNotFoundError as error:
    raise SystemExit(f'error: {error}: install the project first, pip install -e .') from error


def main() -> None:
    args = command.parse_arguments()
    for path in command.show(args):
        print(f'written: {path}')


if __name__ == '__main__':
    cli.run(main)
