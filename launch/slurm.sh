#!/usr/bin/env bash
# Trains on GPU nodes of a Slurm cluster, one process a GPU.
#
#   launch/slurm.sh --nodes=N --gpus-per-node=G --config=C --workdir=W
#                   [--time=T] [--dry-run] [-- --config.a.b=v ..]
#
#   --nodes          nodes of the job
#   --gpus-per-node  GPUs, and processes, on each
#   --config         experiment file, experiments/X.py or an absolute path
#   --workdir        absolute path in a folder that all nodes see; the job's log
#                    is slurm-JOB.log there
#   --time           limit of the job, as sbatch reads it: 1-00:00:00
#   --dry-run        prints the command, as it would be typed, and runs nothing
#
# Run it with this project's Python environment active: the job gets what is in
# the environment, HF_TOKEN too. Partition, account and such are sbatch's own
# variables, SBATCH_PARTITION, SBATCH_ACCOUNT, .. Ten minutes before its time is
# over the job is asked to stop, and goes back to the queue to go on. To end it,
# `scancel JOB`; to end it after a checkpoint, `scancel --signal=TERM JOB` and
# `scancel JOB` once it waits in the queue again.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=flags.sh
source "$(dirname "${BASH_SOURCE[0]}")/flags.sh"

nodes='' gpus_per_node='' config='' workdir='' time=''
read_flags 'nodes gpus-per-node config workdir time' "$@"
need nodes gpus-per-node config workdir
need_shared_workdir "$workdir"
need_program sbatch 'log in to a node of the cluster that may submit jobs'

cd "$(dirname "${BASH_SOURCE[0]}")/.."
call mkdir -p "$workdir"
# In the name of the log % begins a field.
call sbatch --job-name=dash_jax --nodes="$nodes" \
  --gpus-per-node="$gpus_per_node" --ntasks-per-node="$gpus_per_node" \
  ${time:+"--time=$time"} --signal=TERM@600 --requeue --open-mode=append \
  --output="${workdir//%/%%}/slurm-%j.log" launch/slurm_job.sh \
  --config="$config" --workdir="$workdir" --config.mesh.multi_host=True \
  ${overrides[@]+"${overrides[@]}"}
