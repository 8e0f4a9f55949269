# shellcheck shell=bash disable=SC2154,SC2034  # shares variables with tpu.sh, which sets some and reads others
# Sourced by tpu.sh: the machine and its workers, seen through gcloud.

do_or_print() { # with --dry-run prints the command (on fd 3: its caller may be reading its output)
  if [ -n "$dry_run" ]; then quote "$@" >&3; else "$@"; fi
}

say() { [ -n "$dry_run" ] || printf '%s\n' "$*"; }

gone() { grep -qE 'NOT_FOUND|was not found' "$tmp/error"; } # gcloud's answer when there is no such thing

gc() { # gc GROUP VERB ARGUMENTS...: gcloud compute tpus, in our zone and project
  do_or_print gcloud compute tpus "$1" "$2" "${@:3}" --zone="$zone" --project="$project" --quiet
}

# Sets `state`: NONE, UNKNOWN (gcloud failed), PREEMPTED (it says ACTIVE, but the node is gone), or gcloud's own word;
# and `left`, the note about the machine to print at the end.
look() {
  local node
  if ! state="$(gc queued-resources describe "$name" --format='value(state.state)' 2>"$tmp/error")"; then
    if gone; then state=NONE; else state=UNKNOWN; fi
  elif [ -n "$dry_run" ]; then
    state="$assumed"
  elif [ "$state" = ACTIVE ]; then
    node="$(gc tpu-vm describe "$name" --format='value(state)' 2>"$tmp/error")" || { gone && node=TERMINATED; } || true
    case "$node" in PREEMPTED | TERMINATED | STOPPED) state=PREEMPTED ;; esac
  fi
  case "$state" in NONE) left="" ;; UNKNOWN) left="may still be there" ;; *) left="is still there ($state)" ;; esac
}

look_patiently() { # a broken connection on this side is no reason to abandon a machine
  local tries
  for ((tries = 0; tries < 20; tries++)); do
    look
    [ "$state" = UNKNOWN ] || return 0
    sleep "$poll"
  done
  cannot_ask
}

cannot_ask() { fail 1 "cannot ask for the state of $name: $(tail -n 1 "$tmp/error")"; }

dead() { case "$state" in FAILED | SUSPENDING | SUSPENDED | PREEMPTED | DELETING) true ;; *) false ;; esac; }

need_machine() {
  [ "$state" = ACTIVE ] || look # once a verb, and once for the steps of run: what is gone after that fails anyway
  case "$state" in
    ACTIVE) ;;
    NONE) fail 1 "there is no machine $name in $zone: create it first" ;;
    UNKNOWN) cannot_ask ;;
    *) if dead; then fail 3 "$name is $state: resume, or delete"; else fail 4 "$name is $state: wait first"; fi ;;
  esac
}

count_workers() { # sets workers; the same type has as many again
  [ -z "$workers" ] || return 0
  workers="$(gc tpu-vm describe "$name" --format='value(networkEndpoints.len())' 2>"$tmp/error")" ||
    fail 1 "cannot ask for the workers of $name: $(tail -n 1 "$tmp/error")" || return
  [ -z "$dry_run" ] || workers=1
}

# They end the connection to a machine that is no longer there.
alive=(--ssh-flag=-oServerAliveInterval=15 --ssh-flag=-oServerAliveCountMax=4)

on_workers() { # on_workers COMMAND: on all at once; what worker N says comes to be in $tmp/workers/N.log
  rm -rf "$tmp/workers" && mkdir "$tmp/workers" && count_workers || return 1
  gc tpu-vm ssh "$name" --worker=all --output-directory="$tmp/workers" "${alive[@]}" \
    --command="{ $1; } && echo 'worker: ok'" >"$tmp/error" 2>&1 || true
}

everywhere() { # everywhere WHAT COMMAND: as on_workers, and names those that failed
  local index failed=() log
  on_workers "$2" || return 1
  [ -z "$dry_run" ] || return 0
  for ((index = 0; index < workers; index++)); do
    log="$tmp/workers/$index.log"
    if [ "$(tail -n 1 "$log" 2>/dev/null)" != "worker: ok" ]; then
      failed+=("$index")
      echo "worker $index: $(tail -n 3 "$log" 2>/dev/null | tr '\n' ' ' | grep . || echo 'no answer')" >&2
    fi
  done
  [ ${#failed[@]} -eq 0 ] && echo "$1: done on $workers workers" && return 0
  [ -s "$tmp/workers/${failed[0]}.log" ] || tail -n 2 "$tmp/error" >&2
  fail 1 "$1 failed on ${#failed[@]} of $workers workers: $(quote "${failed[@]}"); it is safe to repeat"
}

read_workers() { # sets running and silent (how many), report, and verdict: the exit code of status
  local index line codes="" job='bash simcas/code/launch/job.sh status simcas/job'
  running=0 silent=0 report=""
  on_workers "if [ -e simcas/code ]; then $job || true; else echo 'job: not started'; fi" || return 1
  for ((index = 0; index < workers; index++)); do
    line="$(grep '^job: ' "$tmp/workers/$index.log" 2>/dev/null | tail -n 1 || true)"
    line="${line#job: }"
    case "$line" in
      running*) running=$((running + 1)) ;;
      "") silent=$((silent + 1)) line="no answer" ;;
    esac
    report+="worker $index: $line"$'\n'
    codes+=" ${line%%,*} "
  done
  # An error reported by training (exit 1 or 2) outweighs the aborts of other workers that follow from it.
  case "$codes" in
    *" exit 1 "* | *" exit 2 "*) verdict=1 ;;
    *running* | *" no answer "*) verdict=4 ;;
    *" lost "* | *" exit "[!0]*) verdict=75 ;;
    *" not started "*) verdict=4 ;;
    *) verdict=0 ;;
  esac
}
