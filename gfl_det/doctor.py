"""``python -m gfl_det.doctor``: see :mod:`gfl_det.cli.doctor`."""

import sys

from gfl_det.cli.doctor.__main__ import main

if __name__ == '__main__':
    sys.exit(main())
