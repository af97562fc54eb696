#!/usr/bin/env bash
# Trains on GPUs of whichever cloud has them, as a managed job of SkyPilot.
#
#   launch/skypilot.sh --name=N --bucket=URL --config=C --workdir=W
#                      [--gpus=H100:8] [--nodes=1] [--secret=HF_TOKEN ..]
#                      [--dry-run] [-- --config.a.b=v ..]
#
#   --name     of the job
#   --bucket   URL of a bucket, gs:// or s3://, mounted at /mnt/runs
#   --config   experiment file inside the repository, experiments/X.py
#   --workdir  path on the nodes, /mnt/runs/X
#   --gpus     kind and number on each node
#   --nodes    number of nodes
#   --secret   name of a variable of your environment that the job gets too
#   --dry-run  prints the command, as it would be typed, and runs nothing
#
# SkyPilot makes the machines again when they are preempted, and the run goes on;
# launch/skypilot.yaml is the job. Follow it with `sky jobs logs`, and end it with
# `sky jobs cancel`.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=flags.sh
source "$(dirname "${BASH_SOURCE[0]}")/flags.sh"

name='' bucket='' config='' workdir='' gpus=H100:8 nodes=1
read_flags 'name bucket config workdir gpus nodes secret' "$@"
need name bucket config workdir gpus nodes
need_shared_workdir "$workdir"
secret_words=()
for secret in ${secrets[@]+"${secrets[@]}"}; do
  if [[ ! $secret =~ ^[A-Za-z_][A-Za-z0-9_]*$ ]]; then
    fail '--secret must be the name of a variable of your environment and never' \
      'its value'
  fi
  if [[ -z ${!secret-} ]]; then
    fail "--secret=$secret: the environment has no such variable"
  fi
  secret_words+=(--secret "$secret")
done
need_program sky "pip install 'skypilot[gcp]'"

cd "$(dirname "${BASH_SOURCE[0]}")/.."
call sky jobs launch --yes --name "$name" --gpus "$gpus" --num-nodes "$nodes" \
  --env "BUCKET=$bucket" --env "FLAGS=$(quote --config="$config" \
    --workdir="$workdir" --config.mesh.multi_host=True \
    ${overrides[@]+"${overrides[@]}"})" \
  ${secret_words[@]+"${secret_words[@]}"} launch/skypilot.yaml
