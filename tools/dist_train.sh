#!/usr/bin/env bash
# Train in several processes; tools/torchrun.sh names the variables that it heeds.
#   tools/dist_train.sh CONFIG GPUS [options of tools/train.py]
set -euo pipefail

if [ "$#" -lt 2 ]; then
    echo "usage: $0 CONFIG GPUS [options of tools/train.py]" >&2
    exit 2
fi
exec "$(dirname "${BASH_SOURCE[0]}")/torchrun.sh" train.py "$2" "$1" "${@:3}"
