#!/usr/bin/env bash
# Train on a Slurm cluster.
#   tools/slurm_train.sh PARTITION JOB CONFIG WORK_DIR [options of tools/train.py]
# It asks for a job, or runs a step of the job it is in (a script of sbatch, which alone can be put
# into the queue again: docs/howto/scale.md). GPUS (8), GPUS_PER_NODE (8) and CPUS_PER_TASK (5) size it;
# SRUN_ARGS holds more words for srun; PYTHON names the interpreter.
set -euo pipefail

if [ "$#" -lt 4 ]; then
    echo "usage: $0 PARTITION JOB CONFIG WORK_DIR [options of tools/train.py]" >&2
    exit 2
fi
partition=$1
job=$2
config=$3
work_dir=$4
shift 4
tools=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
gpus=${GPUS:-8}
gpus_per_node=${GPUS_PER_NODE:-8}
# A job smaller than a node must not ask for a whole one.
gpus_per_node=$((gpus < gpus_per_node ? gpus : gpus_per_node))
read -r -a srun_args <<<"${SRUN_ARGS:-}"

PYTHONPATH="$(dirname "$tools")${PYTHONPATH:+:$PYTHONPATH}" \
    exec srun --partition="$partition" \
    --job-name="$job" \
    --gres="gpu:$gpus_per_node" \
    --ntasks="$gpus" \
    --ntasks-per-node="$gpus_per_node" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" \
    --kill-on-bad-exit=1 \
    ${srun_args[@]+"${srun_args[@]}"} \
    "${PYTHON:-python}" -u "$tools/train.py" "$config" \
    --work-dir "$work_dir" --launcher slurm "$@"
