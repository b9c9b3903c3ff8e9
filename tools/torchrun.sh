#!/usr/bin/env bash
# Run a tool in several processes with torchrun, one a GPU (without GPUs one a process, over gloo).
#   tools/torchrun.sh TOOL.py GPUS [arguments of the tool]
# Several machines: set NNODES, NODE_RANK and MASTER_ADDR on each; PORT is 29500 by default.
# MAX_RESTARTS: how often torchrun starts all processes anew when one has died (0 by default); with
# --resume among the arguments they go on from the newest checkpoint. RDZV_ENDPOINT=HOST:PORT lets the
# machines find each other there, so that they may come in any order and leave (NNODES=2:4); restarts
# need it, and use MASTER_ADDR:PORT by default.
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

if [ -z "${RDZV_ENDPOINT:-}" ] && [ "${MAX_RESTARTS:-0}" -gt 0 ]; then
    # Without a rendezvous, processes that were started again find the addresses of the dead.
    RDZV_ENDPOINT=${MASTER_ADDR:-127.0.0.1}:${PORT:-29500}
fi
if [ -n "${RDZV_ENDPOINT:-}" ]; then
    meeting=(--rdzv_backend=c10d --rdzv_endpoint="$RDZV_ENDPOINT" --rdzv_id="${RDZV_ID:-gfl_det}")
else
    meeting=(
        --node_rank="${NODE_RANK:-0}"
        --master_addr="${MASTER_ADDR:-127.0.0.1}"
        --master_port="${PORT:-29500}"
    )
fi

PYTHONPATH="$(dirname "$tools")${PYTHONPATH:+:$PYTHONPATH}" \
    exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    "${meeting[@]}" \
    --max_restarts="${MAX_RESTARTS:-0}" \
    --nproc_per_node="$gpus" \
    "$tools/$tool" "$@" --launcher pytorch
