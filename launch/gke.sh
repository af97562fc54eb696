#!/usr/bin/env bash
# Trains on TPUs of a GKE cluster, as a JobSet that xpk makes.
#
#   launch/gke.sh --name=N --cluster=K --zone=Z --project=P --type=T --config=C
#                 --workdir=W [--secret=HF_TOKEN=S ..] [--dry-run]
#                 [-- --config.a.b=v ..]
#
#   --name     of the workload
#   --cluster  that `xpk cluster create` made
#   --type     of the slice, such as v5litepod-16
#   --config   experiment file inside the repository, experiments/X.py
#   --workdir  path in a storage that `xpk storage attach` mounts in every pod
#   --secret   VARIABLE=SECRET: the newest version of a secret of Secret Manager,
#              which the pods read into their environment
#   --dry-run  prints the command, as it would be typed, and runs nothing
#
# xpk puts this working tree on a Python image and pushes it to the project. A run
# that was stopped (exit code 75), lost a process (69) or whose pods were killed
# starts again, at most 100 times, and goes on from its checkpoint.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=flags.sh
source "$(dirname "${BASH_SOURCE[0]}")/flags.sh"

name='' cluster='' zone='' project='' type='' config='' workdir=''
read_flags 'name cluster zone project type config workdir secret' "$@"
need name cluster zone project type config workdir
need_shared_workdir "$workdir"
need_secrets
need_program xpk 'pip install xpk'

set_words python
# Kubernetes reads $$ as one $, and $(NAME) as a variable, in a pod's command.
line=$(quote "${words[@]}")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
call xpk workload create --workload="$name" --cluster="$cluster" \
  --zone="$zone" --project="$project" --tpu-type="$type" \
  --base-docker-image=python:3.11 --script-dir=. \
  --max-restarts=100 --restart-on-exit-codes=69,75 \
  --termination-grace-period-seconds=600 \
  --command="pip install -q -e '.[tpu,smollm2,hub]' && exec ${line//'$'/'$$'}"
