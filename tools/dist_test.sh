#!/usr/bin/env bash
# Test in several processes; tools/torchrun.sh names the variables that it heeds.
#   tools/dist_test.sh CONFIG CHECKPOINT GPUS [options of tools/test.py]
set -euo pipefail

if [ "$#" -lt 3 ]; then
    echo "usage: $0 CONFIG CHECKPOINT GPUS [options of tools/test.py]" >&2
    exit 2
fi
exec "$(dirname "${BASH_SOURCE[0]}")/torchrun.sh" test.py "$3" "$1" "$2" "${@:4}"
