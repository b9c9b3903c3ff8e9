"""Drop an image on a page, see boxes with soft edges, click one for its edges' distributions.

    python tools/demo_web.py CHECKPOINT [--config CONFIG] [--port N] [--host ADDRESS] [--max-mb MIB]
                             [--max-megapixels MP] [--calibrator JSON] [--intervals JSON]
                             [--device NAME]

Open the address that it prints. It needs the extra of that name (pip install .[demo]) and no
network; images stay in memory. It listens on 127.0.0.1, so that only this machine can use it.
"""

try:
    from gfl_det.cli import demo
    from gfl_det.cli import main as cli
except ImportError as error:  # without gfl_det, or with a broken family
    raise SystemExit(f'error: {error}\npip install -e .  # or see: tools/doctor.py') from error


def main() -> None:
    demo.run(demo.parse_arguments())


if __name__ == '__main__':
    cli.run(main)
