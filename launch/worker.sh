#!/usr/bin/env bash
# One worker of a pod, or any machine one logs out of: the main program under a restart loop that
# outlives the ssh it was started from.
#   worker.sh setup                  installs the environment (Python 3.11+ with apt if there is none)
#   worker.sh start <main's flags>   starts the loop in the background, unless one is running
#   worker.sh logs [tail's flags]    the end of the log
#   worker.sh status                 running or how it ended; exit code 0 only if it is running
#   worker.sh stop                   SIGTERM: the run saves, then ends
# Relative paths in the flags start at $HOME. The log, the process id and the last exit code lie in
# ~/robustmed_run (ROBUSTMED_RUN_DIR). Exit codes 0 and 2 (a mistake in the command) and `stop` end
# the loop; anything else, a preemption or another host that died, starts the command again, which
# goes on from the last checkpoint. Five in a row that end within a minute or with a traceback end it too.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
run_dir=${ROBUSTMED_RUN_DIR:-$HOME/robustmed_run}
pause=${ROBUSTMED_RESTART_PAUSE:-10} # seconds between two starts
quick=${ROBUSTMED_RESTART_QUICK:-60} # a start that ends earlier than this is a quick one
export ROBUSTMED_VENV=${ROBUSTMED_VENV:-$HOME/robustmed_venv}

say() { printf '[launch] %s\n' "$*" >&2; }
fail() { printf 'robustmed: error: %s\n' "$*" >&2; exit 2; }
log() { printf '[launch] %s %s\n' "$(date -u +%FT%TZ)" "$*"; }

running() {
  local pid
  pid=$(cat "$run_dir/pid" 2>/dev/null) || return 1
  # The process id may have gone to another program since.
  kill -0 "$pid" 2>/dev/null && tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -q 'worker.sh loop'
}

setup() {
  local name found=''
  for name in python3.11 python3.12 python3.13 python3; do
    if "$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      found=$name
      break
    fi
  done
  if [ -z "$found" ]; then
    say 'no Python 3.11 or newer with venv found; installing python3.11'
    sudo apt-get update -qq && sudo apt-get install -y -qq python3.11 python3.11-venv
  fi
  . "$here/environment.sh"
  make_environment requirements.txt launch/gcs.txt
}

start() {
  mkdir -p "$run_dir"
  if running; then fail "a run is in progress here (process $(cat "$run_dir/pid")); stop it first"; fi
  rm -f "$run_dir/exit_code"
  # A session of its own, and no terminal: the end of the ssh does not reach it.
  setsid bash "$here/worker.sh" loop "$@" >>"$run_dir/log" 2>&1 </dev/null &
  echo "$!" >"$run_dir/pid"
  say "started as process $!, log in $run_dir/log"
}

loop() {
  local code began short=0 child='' stopping=''
  trap 'stopping=yes; [ -z "$child" ] || kill -TERM "$child" 2>/dev/null || true' TERM INT
  echo "$$" >"$run_dir/pid"
  cd "$HOME"
  export PYTHONPATH="$here/..${PYTHONPATH:+:$PYTHONPATH}"
  while :; do
    began=$SECONDS
    log "starting: $*"
    "$ROBUSTMED_VENV/bin/python" -u -m robustmed.main "$@" &
    child=$!
    # A trapped signal ends `wait` before the child has ended.
    code=0
    wait "$child" || code=$?
    while kill -0 "$child" 2>/dev/null; do
      code=0
      wait "$child" || code=$?
    done
    child=''
    log "ended with exit code $code"
    echo "$code" >"$run_dir/exit_code"
    case $code in 0 | 2) return "$code" ;; esac
    if [ -n "$stopping" ]; then return "$code"; fi
    if [ $((SECONDS - began)) -lt "$quick" ] || [ "$code" = 1 ]; then short=$((short + 1)); else short=0; fi
    if [ "$short" -ge 5 ]; then
      log 'stopped: five starts in a row ended at once or with a traceback'
      return "$code"
    fi
    sleep "$pause" &
    wait "$!" || true
    if [ -n "$stopping" ]; then return "$code"; fi
  done
}

stop() {
  local pid left=${ROBUSTMED_STOP_WAIT:-300}
  if ! running; then
    say 'nothing is running'
    return
  fi
  pid=$(cat "$run_dir/pid")
  kill -TERM "$pid"
  say "asked process $pid to save and stop"
  while running && [ "$left" -gt 0 ]; do
    sleep 1
    left=$((left - 1))
  done
  if running; then fail "process $pid is still saving; look at $run_dir/log; if it hangs, kill it by hand"; fi
  say 'stopped'
}

status() {
  if running; then
    printf 'running as process %s: %s\n' "$(cat "$run_dir/pid")" "$(tail -n 1 "$run_dir/log")"
  elif [ -e "$run_dir/exit_code" ]; then
    printf 'ended with exit code %s: %s\n' "$(cat "$run_dir/exit_code")" "$(tail -n 1 "$run_dir/log")"
    return 1
  else
    printf 'never started, or interrupted (see logs)\n'
    return 1
  fi
}

what=${1:-}
[ $# -eq 0 ] || shift
case $what in
  setup) setup ;;
  start) start "$@" ;;
  loop) loop "$@" ;;
  logs) exec tail -n 100 "$@" "$run_dir/log" ;;
  status) status ;;
  stop) stop ;;
  *) fail "worker.sh takes setup, start, logs, status or stop, not '$what'" ;;
esac
