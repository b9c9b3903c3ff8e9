"""What is installed, whether it fits together, and the line that cures what does not.

    python tools/doctor.py [--json FILE] [--no-self-test]
    python -m gfl_det.doctor [--json FILE] [--no-self-test]

It runs where gfl_det or mmdet cannot be imported. Exit status 1 if there is a problem.
"""

import os
import subprocess
import sys
from pathlib import Path

if __name__ == '__main__':
    root = str(Path(__file__).resolve().parents[1])  # gfl_det may not be installed
    paths = [path for path in (os.environ.get('PYTHONPATH'), root) if path]
    done = subprocess.run(
        [sys.executable, '-m', 'gfl_det.doctor', *sys.argv[1:]],
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(paths)},
        check=False,
    )
    sys.exit(done.returncode)
