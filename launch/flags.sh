# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # Variables are shared with who sources it.
# What the launchers share: flags, and commands that are printed and run.

fail() {
  echo "${0##*/}: $*" >&2
  exit 2
}

# Sets a variable for each --name=value whose name is in $1, `dry_run`, the list
# `secrets` of each --secret=value, and `overrides`, the words after '--'.
read_flags() {
  local _known=" $1 " _flag # no names that a flag may have
  shift
  dry_run=no secrets=() overrides=()
  while (($#)); do
    case $1 in
      --dry-run) dry_run=yes ;;
      --)
        overrides=("${@:2}")
        return
        ;;
      --*=*)
        _flag=${1%%=*}
        _flag=${_flag#--}
        if [[ $_flag == *' '* || $_known != *" $_flag "* ]]; then
          fail "--$_flag is no flag here; valid:${_known}dry-run"
        fi
        if [[ $_flag == secret ]]; then
          secrets+=("${1#*=}")
        else
          printf -v "${_flag//-/_}" %s "${1#*=}"
        fi
        ;;
      *) fail "'$1' is no flag; flags are written --name=value, see $0" ;;
    esac
    shift
  done
}

# Fails with the names of those flags in "$@" that are empty.
need() {
  local flag variable missing=()
  for flag in "$@"; do
    variable=${flag//-/_}
    if [[ -z ${!variable} ]]; then missing+=("--$flag"); fi
  done
  if ((${#missing[@]})); then fail "needs ${missing[*]}"; fi
}

# Fails if $1, the folder of a run, can't be one that all machines see.
need_shared_workdir() {
  if [[ $1 != /* ]]; then
    fail "--workdir=$1 must be an absolute path in a folder that every" \
      "machine of the run sees, such as /mnt/runs/gsm8k"
  fi
}

# Fails unless program $1 is there or nothing will run; $2 says where it is from.
need_program() {
  if [[ $dry_run == no ]] && ! command -v "$1" >/dev/null; then
    fail "$1 is not on PATH: $2; --dry-run needs none"
  fi
}

# Prints its words as one line, quoted for bash.
quote() {
  local word space='' mark="'\\''"
  for word in "$@"; do
    printf %s "$space"
    if [[ $word == *[[:cntrl:]]* ]]; then
      printf %q "$word"
    elif [[ -n $word && $word != *[^a-zA-Z0-9_./:=,@%+-]* ]]; then
      printf %s "$word"
    else
      printf "'%s'" "${word//\'/$mark}"
    fi
    space=' '
  done
}

# Prints the command, and runs it unless this is a rehearsal.
call() {
  quote "$@"
  echo
  if [[ $dry_run == no ]]; then "$@"; fi
}

# Fails unless each of `secrets` is VARIABLE=SECRET, of Google's Secret Manager.
need_secrets() {
  local secret
  for secret in ${secrets[@]+"${secrets[@]}"}; do
    if [[ ! $secret =~ ^[A-Za-z_][A-Za-z0-9_]*=[A-Za-z0-9_-]+$ ]]; then
      fail '--secret must be VARIABLE=SECRET, with the name of a secret and' \
        'never its value'
    fi
  done
}

# Sets `words` to the command that trains on one machine of Google Cloud, by the
# interpreter $1.
set_words() {
  local secret
  words=()
  if ((${#secrets[@]})); then
    words=("$1" launch/with_secrets.py)
    for secret in "${secrets[@]}"; do
      words+=("${secret%%=*}=projects/$project/secrets/${secret#*=}")
    done
    words+=(--)
  fi
  # The last word: bash 3.2 calls an empty array an unset one.
  words+=("$1" -m dash_jax.main --config="$config" --workdir="$workdir"
    --config.mesh.multi_host=True ${overrides[@]+"${overrides[@]}"})
}
