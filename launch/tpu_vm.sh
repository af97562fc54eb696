#!/usr/bin/env bash
# Trains on a Cloud TPU VM, of one host or of many, from your own machine.
#
#   launch/tpu_vm.sh create --name=N --zone=Z --project=P --type=T --version=V
#                           [--capacity=spot]
#   launch/tpu_vm.sh setup  --name=N --zone=Z --project=P --repo=URL [--branch=B]
#                           [--bucket=B]
#   launch/tpu_vm.sh run    --name=N --zone=Z --project=P --config=C --workdir=W
#                           [--secret=HF_TOKEN=S ..] [-- --config.a.b=v ..]
#   launch/tpu_vm.sh logs   --name=N --zone=Z --project=P
#   launch/tpu_vm.sh stop   --name=N --zone=Z --project=P
#   launch/tpu_vm.sh delete --name=N --zone=Z --project=P
#   launch/tpu_vm.sh resume every flag of create, setup and run
#   launch/tpu_vm.sh all    the same
#
#   create  asks for a queued resource and waits until it is there
#   setup   installs the source on all workers, again if it has changed
#   run     starts training on all workers, unless it runs, and then as logs
#   logs    prints what training prints until it ends, and exits with its code:
#           75 says that it was stopped and 69 that it lost a worker; `run` goes
#           on. Ctrl-C ends the printing alone.
#   stop    stops training after a checkpoint. First end a resume or all that
#           watches it, with Ctrl-C: they would start it again.
#   delete  deletes the machine, which costs money until then
#   resume  makes what is missing or was preempted, and runs until the run is
#           complete or fails: one that was stopped, cut off or lost a worker
#           goes on
#   all     resume, then delete
#
#   --name      of the queued resource and TPU  or TPU_NAME in the environment
#   --zone      such as us-west4-a              or TPU_ZONE
#   --project   of the Google Cloud account     or TPU_PROJECT
#   --type      accelerator, v5litepod-16       or TPU_TYPE
#   --version   runtime, v2-alpha-tpuv5-lite    or TPU_VERSION
#   --capacity  spot (preempted at any time), reserved or guaranteed
#   --repo      git URL of this project, which every worker can clone
#   --branch    branch, tag or commit; main if left out
#   --bucket    Cloud Storage bucket, mounted at /mnt/BUCKET
#   --config    experiment file inside the repository, experiments/X.py
#   --workdir   absolute path on the workers. All of them must see one folder, and
#               it must outlive the machine: /mnt/BUCKET/X.
#   --secret    VARIABLE=SECRET: the newest version of a secret of Secret Manager,
#               which the workers read into their environment
#   --dry-run   prints every command, as it would be typed, and runs nothing
#
# With several workers gcloud wants the key in an agent:
# ssh-add ~/.ssh/google_compute_engine

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=flags.sh
source "$(dirname "${BASH_SOURCE[0]}")/flags.sh"

BAD_INPUT=2 LOST=69 STOPPED=75 # dash_jax.main's exit codes
CUT_OFF=255                     # ssh's

queued_resources() {
  call gcloud compute tpus queued-resources "$@" --zone="$zone" \
    --project="$project" --quiet
}

# Prints the state of the queued resource: ACTIVE, SUSPENDED, .. or ABSENT, which
# is also what there is to say where gcloud is not answered.
state() {
  gcloud compute tpus queued-resources describe "$name" --zone="$zone" \
    --project="$project" --format='value(state.state)' || echo ABSENT
}

# Runs one line of bash on every worker.
on_workers() {
  call gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" \
    --project="$project" --quiet --worker=all --command="$1"
}

create() {
  queued_resources create "$name" --node-id="$name" \
    --accelerator-type="$type" --runtime-version="$version" \
    ${capacity:+"--$capacity"}
  await
}

await() {
  local now
  if [[ $dry_run == yes ]]; then return; fi
  while true; do
    now=$(state)
    echo "$name: $now"
    case $now in
      ACTIVE) return ;;
      FAILED | SUSPENDING | SUSPENDED | DELETING)
        echo "tpu_vm.sh: $name will not be there; delete it, or resume" >&2
        exit 1
        ;;
    esac
    sleep 30
  done
}

setup() {
  on_workers "set -e; test -d dash_jax || git init -q dash_jax; \
git -C dash_jax fetch $(quote "$repo" "$branch"); \
git -C dash_jax checkout -q --detach FETCH_HEAD; \
dash_jax/launch/tpu_worker.sh setup $(quote "$bucket")"
}

run() {
  set_words .venv/bin/python
  on_workers "dash_jax/launch/tpu_worker.sh start $(quote "${words[@]}") && \
dash_jax/launch/tpu_worker.sh follow"
}

logs() {
  on_workers 'dash_jax/launch/tpu_worker.sh follow'
}

stop() {
  local code=0
  on_workers 'dash_jax/launch/tpu_worker.sh stop' || code=$?
  if ((code != STOPPED)); then return "$code"; fi
}

delete() {
  queued_resources delete "$name" --force
}

resume() {
  local code now is_new=yes num_lost=0
  while true; do
    now=ABSENT
    if [[ $dry_run == no ]]; then now=$(state); fi
    case $now in
      ACTIVE) ;;
      ABSENT)
        create
        is_new=yes
        ;;
      FAILED | SUSPENDED)
        delete
        create
        is_new=yes
        ;;
      SUSPENDING | DELETING)
        sleep 30
        continue
        ;;
      *)
        await
        is_new=yes
        ;;
    esac
    # What runs on goes on with the source that it began with.
    if [[ $is_new == yes ]]; then setup; fi
    is_new=no code=0
    run || code=$?
    if ((code == 0 || code == BAD_INPUT)); then return "$code"; fi
    # A preempted machine is ACTIVE for a while after its run was stopped.
    sleep 60
    if [[ $(state) == ACTIVE ]]; then
      case $code in
        "$STOPPED" | "$CUT_OFF") num_lost=0 ;;
        # The third loss in a row on one machine is no accident.
        "$LOST") ((++num_lost < 3)) || return "$code" ;;
        *) return "$code" ;;
      esac
    else
      num_lost=0
    fi
    echo "tpu_vm.sh: the run was cut off with code $code; it goes on" >&2
  done
}

all() {
  resume
  delete
}

command=${1-}
case $command in
  create) flags='type version capacity' ;;
  setup) flags='repo branch bucket' ;;
  run) flags='config workdir secret' ;;
  logs | stop | delete) flags='' ;;
  resume | all)
    flags='type version capacity repo branch bucket config workdir secret'
    ;;
  *)
    fail "'$command' is no command; valid: create, setup, run, logs, stop," \
      "delete, resume, all"
    ;;
esac
shift

name=${TPU_NAME-} zone=${TPU_ZONE-} project=${TPU_PROJECT-}
type=${TPU_TYPE-} version=${TPU_VERSION-} capacity=''
repo='' branch=main bucket='' config='' workdir=''
read_flags "name zone project $flags" "$@"

needed=(name zone project)
for flag in $flags; do
  case $flag in
    capacity | bucket | secret) ;;
    *) needed+=("$flag") ;;
  esac
done
need "${needed[@]}"
case $capacity in
  '' | spot | reserved | guaranteed) ;;
  *) fail "--capacity=$capacity must be spot, reserved or guaranteed" ;;
esac
if [[ $bucket == */* ]]; then
  fail "--bucket=$bucket must be the name of a bucket, without gs://"
fi
if [[ $flags == *workdir* ]]; then need_shared_workdir "$workdir"; fi
need_secrets
need_program gcloud 'install it from https://cloud.google.com/sdk/docs/install'

if [[ $dry_run == no && $flags == *capacity*workdir* ]]; then
  trap 'echo "tpu_vm.sh: $name may still run and cost money" >&2' EXIT
fi
"$command"
if [[ $command == all ]]; then trap - EXIT; fi
