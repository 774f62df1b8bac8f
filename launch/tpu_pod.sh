#!/usr/bin/env bash
# A Cloud TPU, one host or a whole pod, from this machine: needs gcloud, logged in, and git; for a pod
# of several hosts the ssh key in an agent (ssh-add ~/.ssh/google_compute_engine, after a first ssh).
#   tpu_pod.sh check  --type v5litepod-16 --config configs/X.py:paper ...   memory and hours there, by the
#                                                      compiler of TPUs, on this machine (no gcloud, no TPU)
#   tpu_pod.sh create --name NAME --zone ZONE --type v5litepod-16 [--spot]
#   tpu_pod.sh setup  --name NAME --zone ZONE            send the tree, install what it needs
#   tpu_pod.sh run    --name NAME --zone ZONE --config configs/X.py --workdir gs://BUCKET/DIR ...
#   tpu_pod.sh logs | status | stop | delete  --name NAME --zone ZONE
# Flags:
#   --name NAME --zone ZONE   which TPU (NAME, ZONE)
#   --project PROJECT         if not gcloud's own (PROJECT)
#   --type TYPE               check, create: accelerator type, e.g. v5litepod-16, v5p-8, v6e-16 (TYPE)
#   --version VERSION         create: runtime version, guessed from the type if left out (VERSION)
#   --spot                    create: cheaper, may be taken away at any time (SPOT=yes)
#   --ref REF                 setup, run: the commit to send (default HEAD; uncommitted changes are not sent)
#   --worker N|all            logs, status: which workers (default: 0 for logs, all for status)
#   --follow                  logs: follow until Ctrl-C
#   --yes                     delete: do not ask
#   --env FILE                lines KEY=VALUE with the words in brackets above (default: launch/tpu_pod.env,
#                             if there); flags win
#   --dry-run                 print every command, run none
# `run` passes every flag that it does not know, and all after --, to the main program and adds
# --distributed. It starts the same command on every worker under launch/worker.sh, which starts it
# again after a failure and does not need this machine: close the laptop, `logs` later.
set -euo pipefail

fail() { printf 'robustmed: error: %s\n' "$*" >&2; exit 2; }
say() { printf '[launch] %s\n' "$*" >&2; }

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$here")
name='' zone='' project='' type='' version='' spot='' ref=HEAD worker='' follow='' yes='' dry='' env_file=''
main_flags=() own=()

# A word as one would type it.
quoted() {
  case $1 in
    '' | *[!A-Za-z0-9_./:=,@%+-]*) printf "'%s'" "${1//\'/\'\\\'\'}" ;;
    *) printf '%s' "$1" ;;
  esac
}

joined() {
  local word space=''
  for word in "$@"; do
    printf '%s' "$space"
    quoted "$word"
    space=' '
  done
}

run() {
  if [ -n "$dry" ]; then
    joined "$@"
    printf '\n'
  else
    "$@"
  fi
}

usage() {
  # The comment at the top of this file.
  sed -n '2,/^set -euo/{/^set -euo/d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}"
}

read_env_file() {
  local file=$1 line key value
  [ -r "$file" ] || fail "no file $file; --env takes a file of lines KEY=VALUE"
  while IFS= read -r line || [ -n "$line" ]; do
    case $line in '' | '#'*) continue ;; esac
    line=${line%$'\r'}
    key=${line%%=*} value=${line#*=} value=${value%%[[:space:]]#*}
    value=${value%"${value##*[![:space:]]}"}
    case $value in \"*\" | \'*\') value=${value:1:${#value}-2} ;; esac
    case $key in
      NAME) name=${name:-$value} ;;
      ZONE) zone=${zone:-$value} ;;
      PROJECT) project=${project:-$value} ;;
      TYPE) type=${type:-$value} ;;
      VERSION) version=${version:-$value} ;;
      SPOT) case $value in yes | true | 1) spot=yes ;; esac ;;
      *) fail "$file has the line '$line'; it takes NAME, ZONE, PROJECT, TYPE, VERSION and SPOT" ;;
    esac
  done <"$file"
}

# Also as --flag=VALUE.
parse() {
  local flag value given
  while [ $# -gt 0 ]; do
    flag=$1 given='' value=''
    case ${flag%%=*} in --type | --version | --spot | --ref | --worker | --follow | --yes) own+=("${flag%%=*}") ;; esac
    case $flag in
      --)
        shift
        main_flags+=("$@")
        return
        ;;
      --name=* | --zone=* | --project=* | --type=* | --version=* | --ref=* | --worker=* | --env=*)
        value=${flag#*=} flag=${flag%%=*} given=yes
        ;;
    esac
    case $flag in
      --name | --zone | --project | --type | --version | --ref | --worker | --env)
        if [ -z "$given" ]; then
          [ $# -gt 1 ] || fail "$flag needs a value"
          value=$2
          shift
        fi
        case $flag in
          --name) name=$value ;;
          --zone) zone=$value ;;
          --project) project=$value ;;
          --type) type=$value ;;
          --version) version=$value ;;
          --ref) ref=$value ;;
          --worker) worker=$value ;;
          --env) env_file=$value ;;
        esac
        ;;
      --spot) spot=yes ;;
      --follow) follow=yes ;;
      --yes) yes=yes ;;
      --dry-run) dry=yes ;;
      *) main_flags+=("$1") ;;
    esac
    shift
  done
}

tpu() {
  local verb=$1
  shift
  run gcloud compute tpus tpu-vm "$verb" "$@" "--zone=$zone" ${project:+"--project=$project"}
}

# on WORKERS COMMAND
on() { tpu ssh "$name" "--worker=$1" --command "$2"; }

guess_version() {
  case $type in
    v2-* | v3-* | v4-*) echo tpu-ubuntu2204-base ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) fail "the runtime version for the type '$type' is unknown; give it with --version" ;;
  esac
}

create() {
  [ -n "$type" ] || fail 'create needs --type, e.g. v5litepod-16 (16 chips of TPU v5e)'
  version=${version:-$(guess_version)}
  tpu create "$name" "--accelerator-type=$type" "--version=$version" ${spot:+--spot}
}

sent() {
  git -C "$root" rev-parse --verify --quiet "$ref^{commit}" || fail "there is no commit '$ref' in this repository"
}

# The committed tree replaces ~/robustmed on every worker; runs never write into it.
send() {
  local commit archive
  commit=$(sent)
  if [ "$ref" = HEAD ] && [ -n "$(git -C "$root" status --porcelain --untracked-files=no)" ]; then
    say 'uncommitted changes are not sent'
  fi
  archive=${TMPDIR:-/tmp}/robustmed-$commit.tar.gz
  run git -C "$root" archive --format=tar.gz "--output=$archive" "$commit"
  tpu scp "$archive" "$name:robustmed.tar.gz" --worker=all
  run rm -f "$archive"
}

unpack='rm -rf robustmed && mkdir robustmed && tar -xzf robustmed.tar.gz -C robustmed'
install='ROBUSTMED_ACCELERATOR=tpu bash robustmed/launch/worker.sh setup'

setup() {
  refuse_if_running
  send
  on all "$unpack && $install"
}

# Before anything is replaced under its feet.
refuse_if_running() {
  on all 'if [ -e robustmed/launch/worker.sh ] && bash robustmed/launch/worker.sh status 2>/dev/null; then echo "robustmed: error: a run is in progress here; stop it first" >&2; exit 2; fi'
}

start() {
  local workdir='' config='' previous='' flag distributed='' words commit
  for flag in ${main_flags[@]+"${main_flags[@]}"}; do
    case $flag in
      --workdir=*) workdir=${flag#*=} ;;
      --config=*) config=${flag#*=} ;;
      --distributed) distributed=yes ;;
    esac
    case $previous in
      --workdir) workdir=$flag ;;
      --config) config=$flag ;;
    esac
    previous=$flag
  done
  { [ -n "$config" ] && [ -n "$workdir" ]; } ||
    fail "run needs the main program's --config and --workdir, e.g. --config configs/quickstart.py --workdir gs://BUCKET/DIR"
  config=${config%%:*}
  case $config in
    /*) ;;
    *)
      commit=$(sent)
      git -C "$root" cat-file -e "$commit:$config" 2>/dev/null ||
        fail "the commit '$ref', which would be sent, has no file $config"
      ;;
  esac
  [ -n "$distributed" ] || main_flags+=(--distributed)
  case $workdir in
    gs://* | s3://*) ;;
    *) say "the workdir '$workdir' must be on a disk that all workers share and that outlives them (NFS, gcsfuse); or use gs://BUCKET/DIR" ;;
  esac
  words=$(joined "${main_flags[@]}")
  setup
  on all "bash robustmed/launch/worker.sh start $words"
  [ -n "$dry" ] || say "started; to follow it: launch/tpu_pod.sh logs --name $name --zone $zone --follow"
}

# In an environment of its own: where the compiler is installed, JAX looks for a TPU at every start.
check() {
  [ -n "$type" ] || fail 'check needs --type, e.g. v5litepod-16 (16 chips of TPU v5e)'
  local flag config=''
  for flag in ${main_flags[@]+"${main_flags[@]}"}; do
    case $flag in --config | --config=*) config=yes ;; esac
  done
  [ -n "$config" ] || fail "check needs the main program's --config, e.g. --config configs/spine.py:paper"
  run env "ROBUSTMED_VENV=${ROBUSTMED_VENV:-$root/.venv-tpu-compile}" ROBUSTMED_EXTRA=launch/tpu_compile.txt \
    bash "$root/launch/local.sh" --stage compile --target "$type" "${main_flags[@]}"
}

remove() {
  tpu delete "$name" ${yes:+--quiet}
}

what=${1:-}
case $what in
  check | create | setup | run | logs | status | stop | delete) shift ;;
  -h | --help | help) usage; exit 0 ;;
  '') usage >&2; fail 'the command is missing: check, create, setup, run, logs, status, stop or delete' ;;
  *) fail "unknown command '$what'; known are check, create, setup, run, logs, status, stop and delete" ;;
esac
parse "$@"
if [ -z "$env_file" ] && [ -e "$here/tpu_pod.env" ]; then env_file=$here/tpu_pod.env; fi
[ -z "$env_file" ] || read_env_file "$env_file"
if [ "$what" = check ]; then
  for flag in ${own[@]+"${own[@]}"}; do
    [ "$flag" = --type ] || fail "check does not take $flag; see --help (flags for the main program come after --)"
  done
  check
  exit
fi
[ -n "$name" ] || fail "$what needs --name"
[ -n "$zone" ] || fail "$what needs --zone, e.g. us-west4-a"
if [ "$what" != run ] && [ ${#main_flags[@]} -gt 0 ]; then
  fail "$what does not take ${main_flags[0]}; see --help"
fi
for flag in ${own[@]+"${own[@]}"}; do
  case $what$flag in
    create--type | create--version | create--spot | setup--ref | run--ref) ;;
    logs--worker | logs--follow | status--worker | delete--yes) ;;
    *) fail "$what does not take $flag; see --help (flags for the main program come after --)" ;;
  esac
done
[ -n "$dry" ] || command -v gcloud >/dev/null || fail 'gcloud is not on PATH; install the Google Cloud CLI, then: gcloud auth login'

case $what in
  create) create ;;
  setup) setup ;;
  run) start ;;
  logs) on "${worker:-0}" "bash robustmed/launch/worker.sh logs${follow:+ -f}" ;;
  status)
    tpu describe "$name" '--format=value(acceleratorType,state,health)'
    on "${worker:-all}" 'bash robustmed/launch/worker.sh status || true'
    ;;
  stop) on all 'bash robustmed/launch/worker.sh stop' ;;
  delete) remove ;;
esac
