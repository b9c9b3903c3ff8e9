"""What is installed, whether it fits together, and the line that cures what does not.

    python tools/doctor.py [--json FILE] [--no-self-test]
    python -m gfl_det.doctor [--json FILE] [--no-self-test]

It runs where gfl_det or mmdet cannot be imported. Exit status 1 if there is a problem.
"""

import runpy
import sys
from pathlib import Path

if __name__ == '__main__':
    sys.path.append(str(Path(__file__).resolve().parents[1]))  # it may not be installed
    runpy.run_module('gfl_det.doctor', run_name='__main__', alter_sys=True)
