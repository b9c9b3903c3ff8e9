"""``python -m gfl_det``: the same as ``gfl-det``."""

from gfl_det.cli.main import main

if __name__ == '__main__':
    main()
