#!/usr/bin/env bash
# One background job, which outlives the connection that started it.
#
#   bash launch/job.sh start DIR COMMAND...    does nothing if it is running; another job in DIR is an error
#   bash launch/job.sh status DIR              running, exit CODE, lost (no exit code: killed, rebooted), not started
#   bash launch/job.sh logs DIR [LINES]        the last lines (default 100), then new ones until the job ends
#   bash launch/job.sh stop DIR [SECONDS]      SIGTERM; SIGKILL if that has not ended it after SECONDS (default 600: a
#                                              training finishes its step, which may be compiling, and saves)
#
# DIR gets command, log, pid, exit and lock: the job runs as long as it holds the lock, so two cannot run at once, and
# a process id that was reused after a reboot is not mistaken for the job.
# exit codes: 0 done, 1 an error; status: 0 ended with 0, 1 ended otherwise, 4 running, 5 not started
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

running() { [ -e "$dir/lock" ] && ! flock --nonblock "$dir/lock" true; }

start() {
  mkdir -p "$dir" || return 1
  exec 9>>"$dir/lock"
  if ! flock --nonblock 9; then
    if [ -e "$dir/command" ] && [ "$(quote "$@")" != "$(cat "$dir/command")" ]; then
      fail 1 "another job is running in $dir, pid $(cat "$dir/pid" 2>/dev/null): stop it first. It is $(cat "$dir/command")"
      return
    fi
    echo "job: running already, pid $(cat "$dir/pid" 2>/dev/null): not started again"
    return 0
  fi
  rm -f "$dir/exit" "$dir/pid" "$dir/command"
  quote "$@" >"$dir/command"
  # In a session of its own, so that no hang-up reaches it; it inherits the lock. SIGTERM (from stop or a shutdown) is
  # forwarded to the command, which saves and exits; the exit code is written atomically.
  # shellcheck disable=SC2016  # expanded by the inner shell
  setsid bash -c '
    dir="$1"
    shift
    "$@" &
    child=$!
    trap "kill -TERM $child 2>/dev/null" TERM
    echo "$child" >"$dir/pid"
    while wait "$child" && code=0 || code=$?; kill -0 "$child" 2>/dev/null; do :; done
    # If the trap interrupted the wait, it returned the signal; wait again for the command'"'"'s own exit code.
    wait "$child" 2>/dev/null && own=0 || own=$?
    [ "$own" -eq 127 ] || code=$own
    echo "$code" >"$dir/exit.new"
    mv "$dir/exit.new" "$dir/exit"
  ' job "$dir" "$@" >>"$dir/log" 2>&1 </dev/null &
  exec 9>&-
  while running && [ ! -s "$dir/pid" ]; do sleep 0.05; done
  echo "job: started, pid $(cat "$dir/pid"), log $dir/log"
}

status() {
  if running; then
    echo "job: running, pid $(cat "$dir/pid" 2>/dev/null)"
    return 4
  fi
  [ -e "$dir/command" ] || { echo "job: not started" && return 5; }
  [ -e "$dir/exit" ] || { echo "job: lost" && return 1; }
  echo "job: exit $(cat "$dir/exit")"
  [ "$(cat "$dir/exit")" = 0 ]
}

logs() {
  [ -e "$dir/log" ] || fail 1 "no log in $dir: nothing was started there" || return
  if running; then
    exec tail -n "${1:-100}" --sleep-interval=0.2 --pid="$(cat "$dir/pid")" -F "$dir/log"
  fi
  tail -n "${1:-100}" "$dir/log"
}

stop() {
  local begin=$SECONDS
  running || { status || true; return 0; }
  kill -TERM "$(cat "$dir/pid")" 2>/dev/null || true
  while running; do
    [ $((SECONDS - begin)) -lt "${1:-600}" ] || kill -KILL "$(cat "$dir/pid")" 2>/dev/null || true
    sleep 0.2
  done
  status || true
}

case "${1:-}" in
  start | status | logs | stop) [ $# -ge 2 ] || { fail 2 "$1 what? see launch/job.sh --help"; exit; } ;;
  -h | --help) show_help "${BASH_SOURCE[0]}"; exit 0 ;;
  *) fail 2 "no such verb: '${1:-}'; one of start, status, logs, stop"; exit ;;
esac
dir="$2"
"$1" "${@:3}"
