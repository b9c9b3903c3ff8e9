#!/usr/bin/env bash
# Run a tool in several processes with torchrun, one a GPU (without GPUs one a process, over gloo).
#   tools/torchrun.sh TOOL.py GPUS [arguments of the tool]
# Several machines: set NNODES, NODE_RANK and MASTER_ADDR on each; PORT is 29500 by default.
# PYTHON names the interpreter: PYTHON=.venv/bin/python tools/torchrun.sh ...
set -euo pipefail

if [ "$#" -lt 2 ]; then
    echo "usage: $0 TOOL.py GPUS [arguments of the tool]" >&2
    exit 2
fi
tool=$1
gpus=$2
shift 2
tools=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

PYTHONPATH="$(dirname "$tools")${PYTHONPATH:+:$PYTHONPATH}" \
    exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$gpus" \
    "$tools/$tool" "$@" --launcher pytorch
