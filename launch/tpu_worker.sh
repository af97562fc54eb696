#!/usr/bin/env bash
# One worker's part of tpu_vm.sh, which calls it on all of them over ssh.
#
#   launch/tpu_worker.sh setup [BUCKET]  installs; mounts the bucket at /mnt/BUCKET
#   launch/tpu_worker.sh start WORD ..   starts a command that outlives the ssh
#                                        session, unless one runs already
#   launch/tpu_worker.sh follow          prints what it prints until it has ended,
#                                        and exits with its code
#   launch/tpu_worker.sh stop            sends it SIGTERM and follows it
#
# Its log, code and process id are in ~/dash_jax_run.

set -euo pipefail
cd "$(dirname "$0")/.."

lost=255 # ssh's code for a lost connection
run=$HOME/dash_jax_run
mkdir -p "$run"

# The holder of the run has the lock, and a restarted machine frees it.
is_running() {
  ! flock --nonblock "$run/lock" true
}

setup() {
  # Runtimes differ in their Python, so uv brings the one that is tested.
  if [[ ! -x $HOME/.local/bin/uv ]]; then
    curl -LsSf https://astral.sh/uv/install.sh | sh
  fi
  if [[ ! -d .venv ]]; then "$HOME/.local/bin/uv" venv --python=3.11 .venv; fi
  "$HOME/.local/bin/uv" pip install --python=.venv/bin/python \
    --editable='.[tpu,smollm2,hub]'
  echo "${1-}" >"$run/bucket"
  mount_bucket
}

# A machine that was restarted has lost its mount, and writes would go to its disk.
mount_bucket() {
  local bucket='' list=/etc/apt/sources.list.d/gcsfuse.list
  local key=/usr/share/keyrings/cloud.google.asc
  local from=https://packages.cloud.google.com/apt
  if [[ -f $run/bucket ]]; then bucket=$(<"$run/bucket"); fi
  if [[ -z $bucket ]] || mountpoint --quiet "/mnt/$bucket"; then return; fi
  if ! command -v gcsfuse >/dev/null; then
    curl -fsS "$from/doc/apt-key.gpg" | sudo tee "$key" >/dev/null
    echo "deb [signed-by=$key] $from gcsfuse-$(lsb_release -cs) main" |
      sudo tee "$list" >/dev/null
    sudo apt-get update -q
    sudo apt-get install -qy gcsfuse
  fi
  sudo mkdir -p "/mnt/$bucket"
  sudo chown "$(id -u)" "/mnt/$bucket"
  # Workers look at once for what another has written.
  gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 \
    --metadata-cache-negative-ttl-secs=0 "$bucket" "/mnt/$bucket"
}

start() {
  if is_running; then
    echo 'tpu_worker.sh: a run is at work already; following it'
    return
  fi
  mount_bucket
  rm -f "$run/holder" "$run/code"
  setsid launch/tpu_worker.sh hold "$@" >"$run/log" 2>&1 </dev/null &
  until [[ -s $run/holder ]]; do sleep 0.1; done
}

# Runs the command to its end, passes SIGTERM on, and keeps its code.
hold() {
  local code main='' signalled
  exec 9>"$run/lock"
  # Whoever asks whether a run is at work has the lock for a moment.
  flock --timeout 10 9
  trap 'signalled=yes; kill -TERM "$main" || true' TERM
  "$@" 9>&- &
  main=$!
  echo $$ >"$run/holder"
  # A signal ends `wait`, and not the command.
  while signalled=no code=0; do
    wait "$main" || code=$?
    if [[ $signalled == no ]]; then break; fi
  done
  echo "$code" >"$run/code"
}

follow() {
  if is_running; then
    tail --lines=+1 --follow --pid="$(<"$run/holder")" "$run/log"
  else
    tail --lines=100 "$run/log"
  fi | sed --unbuffered "s/^/[$(hostname)] /"
  if [[ ! -s $run/code ]]; then
    echo 'tpu_worker.sh: the run was cut off with its machine' >&2
    exit "$lost"
  fi
  exit "$(<"$run/code")"
}

stop() {
  if is_running; then kill -TERM "$(<"$run/holder")"; fi
  follow
}

case ${1-} in
  setup | start | hold | follow | stop) "$@" ;;
  *)
    echo "tpu_worker.sh: '${1-}' is no command; valid: setup, start, follow," \
      'stop' >&2
    exit 2
    ;;
esac
