#!/usr/bin/env bash
# Trains on a Cloud TPU VM, of one host or of many, from your own machine.
#
#   launch/tpu_vm.sh create --name=N --zone=Z --project=P --type=T --version=V
#   launch/tpu_vm.sh setup  --name=N --zone=Z --project=P --repo=URL [--branch=B]
#   launch/tpu_vm.sh run    --name=N --zone=Z --project=P --config=C --workdir=W
#                           [-- --config.a.b=v ..]
#   launch/tpu_vm.sh delete --name=N --zone=Z --project=P
#   launch/tpu_vm.sh all    every flag above: create, setup, run and delete
#
#   --name     of the TPU VM                   or TPU_NAME in the environment
#   --zone     such as us-west4-a              or TPU_ZONE
#   --project  of the Google Cloud account     or TPU_PROJECT
#   --type     accelerator, v5litepod-16       or TPU_TYPE
#   --version  runtime, v2-alpha-tpuv5-lite    or TPU_VERSION
#   --repo     git URL of this project, which every worker can clone
#   --branch   branch or tag; main if left out
#   --config   experiment file inside the repository, experiments/X.py
#   --workdir  absolute path on the workers. All of them must see one folder, and
#              it must outlive the VM: mount a bucket or a file store there.
#   --dry-run  prints every command, as it would be typed, and runs nothing
#
# `run` again goes on where a stopped run was. `all` deletes the VM only after a
# run that ended well; a VM that is not deleted costs money. With several workers
# gcloud wants the key in an agent: ssh-add ~/.ssh/google_compute_engine

set -euo pipefail

fail() {
  echo "tpu_vm.sh: $*" >&2
  exit 2
}

# Prints the command, and runs it unless this is a rehearsal.
call() {
  printf '%q ' "$@"
  echo
  if [[ $dry_run == no ]]; then "$@"; fi
}

# Fails with the names of those flags in "$@" that are empty.
need() {
  local flag missing=()
  for flag in "$@"; do
    if [[ -z ${!flag} ]]; then missing+=("--$flag"); fi
  done
  if ((${#missing[@]})); then fail "$command needs ${missing[*]}"; fi
}

# Runs one line of bash on every worker.
on_workers() {
  call gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" \
    --project="$project" --quiet --worker=all --command="$1"
}

create() {
  call gcloud compute tpus tpu-vm create "$name" --zone="$zone" \
    --project="$project" --quiet --accelerator-type="$type" \
    --version="$version"
}

# Runtimes differ in their Python, so uv brings the one that is tested. A second
# setup updates the source and keeps the environment.
setup() {
  local source
  source=$(printf 'git -C dash_jax fetch %q %q' "$repo" "$branch")
  on_workers "set -e; cd; test -d dash_jax || git init -q dash_jax; $source; \
git -C dash_jax checkout -q --detach FETCH_HEAD; \
test -x .local/bin/uv || curl -LsSf https://astral.sh/uv/install.sh | sh; \
test -d dash_jax/.venv || .local/bin/uv venv --python=3.11 dash_jax/.venv; \
.local/bin/uv pip install --python=dash_jax/.venv/bin/python \
--editable='./dash_jax[tpu,smollm2]'"
}

run() {
  local line
  # The last word: bash 3.2 calls an empty array an unset one.
  line=$(printf '%q ' .venv/bin/python -m dash_jax.main --config="$config" \
    --workdir="$workdir" --config.mesh.multi_host=True \
    ${overrides[@]+"${overrides[@]}"})
  on_workers "cd ~/dash_jax && ${line% }"
}

delete() {
  call gcloud compute tpus tpu-vm delete "$name" --zone="$zone" \
    --project="$project" --quiet
}

command=${1-}
case $command in
  create) flags=(name zone project type version) ;;
  setup) flags=(name zone project repo branch) ;;
  run) flags=(name zone project config workdir) ;;
  delete) flags=(name zone project) ;;
  all) flags=(name zone project type version repo branch config workdir) ;;
  *) fail "'$command' is no command; valid: create, setup, run, delete, all" ;;
esac
shift

name=${TPU_NAME-} zone=${TPU_ZONE-} project=${TPU_PROJECT-}
type=${TPU_TYPE-} version=${TPU_VERSION-}
repo='' branch=main config='' workdir='' dry_run=no overrides=()

while (($#)); do
  case $1 in
    --dry-run) dry_run=yes ;;
    --name=* | --zone=* | --project=* | --type=* | --version=* | --repo=* | \
      --branch=* | --config=* | --workdir=*)
      flag=${1%%=*}
      printf -v "${flag#--}" '%s' "${1#*=}"
      ;;
    --) shift && overrides=("$@") && break ;;
    *) fail "'$1' is no flag; flags are written --name=value, see the top of" \
      "$0" ;;
  esac
  shift
done

need "${flags[@]}"
if [[ " ${flags[*]} " == *' workdir '* && $workdir != /* ]]; then
  fail "--workdir=$workdir must be an absolute path on the workers, such as" \
    "/mnt/runs/gsm8k; mount a bucket to write to it"
fi
if [[ $dry_run == no ]] && ! command -v gcloud >/dev/null; then
  fail 'gcloud is not on PATH; install it from' \
    'https://cloud.google.com/sdk/docs/install, or look with --dry-run'
fi

if [[ $command == all ]]; then
  trap 'echo "tpu_vm.sh: stopped; $name may still run and cost money" >&2' EXIT
  create
  setup
  run
  delete
  trap - EXIT
else
  "$command"
fi
