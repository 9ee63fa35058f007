#!/bin/sh
# A run of SLURM:  sh tools/slurm_train.sh PARTITION JOB_NAME CONFIG [arguments of train.py]
#
# GPUS (8) processes, GPUS_PER_NODE (8, or GPUS if that is less) and CPUS_PER_TASK (5) of each,
# SRUN_ARGS: further arguments of srun, in words without blanks.
set -eu
if [ $# -lt 3 ]; then
    echo "error: sh tools/slurm_train.sh PARTITION JOB_NAME CONFIG [arguments of train.py]" >&2
    exit 2
fi
partition=$1 job_name=$2
shift 2
gpus=${GPUS:-8}
default=8
if [ "$gpus" -lt 8 ]; then default=$gpus; fi
gpus_per_node=${GPUS_PER_NODE:-$default}
# SRUN_ARGS is split at blanks.
# shellcheck disable=SC2086
exec srun -p "$partition" \
    --job-name="$job_name" \
    --gres=gpu:"$gpus_per_node" \
    --ntasks="$gpus" \
    --ntasks-per-node="$gpus_per_node" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" \
    --kill-on-bad-exit=1 \
    ${SRUN_ARGS:-} \
    "${PYTHON:-python}" -u "$(dirname "$0")/train.py" "$@" --launcher=slurm
