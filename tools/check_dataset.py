"""Check a data set before it costs a training, and repair what can be repaired.

    python tools/check_dataset.py CONFIG [--split train val test] [--cfg-options KEY=VALUE ...]
    python tools/check_dataset.py ANNOTATIONS.json [--images DIR]
                                  [--decode [--workers N] [--max-pixels N]] [--fix OUT.json]
                                  [--json FILE] [--strict]

CONFIG is a file or the name of a shipped config. The images are listed, and with --decode also
decoded; priors and the head's regression range are checked with a config alone. Exit
status 1 if something would stop or spoil a training.
"""

try:
    from gfl_det.cli import check_dataset
    from gfl_det.cli import main as cli
except ImportError as error:  # without gfl_det, or with a broken family
    raise SystemExit(f'error: {error}\npip install -e .  # or see: tools/doctor.py') from error


def main() -> None:
    status = check_dataset.run(check_dataset.parse_arguments())
    if status:
        raise SystemExit(status)


if __name__ == '__main__':
    cli.run(main)
