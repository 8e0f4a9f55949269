#!/usr/bin/env bash
# Trains on a Cloud TPU slice of one or more hosts: one verb per step, and `run` for all of them.
#
#   bash launch/tpu.sh VERB --name=NAME --zone=ZONE [FLAGS] [-- TRAIN ARGUMENTS...]
#
#   run      create, wait, copy, install, start, follow; again after each preemption, until trained; then delete
#            bash launch/tpu.sh run --name=arxiv --zone=us-west4-a --type=v5litepod-256 --workdir=gs://BUCKET/runs/arxiv \
#                -- --config=configs/arxiv.py --config.data.data_dir=gs://BUCKET/data/arxiv --config.data.batch_size=256 \
#                   --config.optimizer.accumulate_step=1
#   create   ask for the machine              tpu.sh create --name=arxiv --zone=us-west4-a --type=v5litepod-16 --on-demand
#   wait     until it is there                tpu.sh wait --name=arxiv --zone=us-west4-a --timeout=7200
#   copy     what git tracks, as it is now    tpu.sh copy --name=arxiv --zone=us-west4-a
#   install  Python and the environment       tpu.sh install --name=arxiv --zone=us-west4-a
#   start    training, on all workers         tpu.sh start --name=arxiv --zone=us-west4-a --workdir=gs://BUCKET/runs/arxiv \
#                                                 -- --config=configs/arxiv.py --config.data.data_dir=gs://BUCKET/data/arxiv
#   logs     follow one worker's              tpu.sh logs --name=arxiv --zone=us-west4-a --worker=3
#   status   machine, every worker, and with --workdir the newest checkpoint
#                                             tpu.sh status --name=arxiv --zone=us-west4-a --workdir=gs://BUCKET/runs/arxiv
#   stop     training saves and ends (end a run first: it would start it again)
#                                             tpu.sh stop --name=arxiv --zone=us-west4-a
#   resume   delete what was preempted, and create .. start again: flags and arguments of run
#   fetch    results into a folder            tpu.sh fetch --name=arxiv --zone=us-west4-a --workdir=gs://BUCKET/runs/arxiv --to=runs/arxiv
#   delete   the machine, and see it gone     tpu.sh delete --name=arxiv --zone=us-west4-a
#
# Every flag can be an environment variable instead: SIMCAS_TPU_NAME, SIMCAS_TPU_ZONE and so on (put them in a file and
# source it). Flags:
#   --name  --zone  --project    of the queued resource and its node; the project defaults to gcloud's
#   --type                       v4-8, v5litepod-256, v5p-128, v6e-16 and so on
#   --version                    runtime version; by default the plain one of the type
#   --spot | --on-demand         spot (the default) is cheaper and may be preempted at any time
#   --workdir=gs://BUCKET/PATH   outlives the machine: that is what resuming needs. Training writes there itself; of its
#                                other arguments those that say gs://... (data, weights) become paths in buckets that the
#                                workers mount with gcsfuse, to read only
#   --prepare=COMMAND            run on each worker before installing, e.g. to add gcsfuse's package source
#   --create-flags='FLAGS...'    more flags for gcloud's create, separated by spaces, e.g. --network=NAME
#   --worker=0  --to=DIR         for logs and fetch
#   --timeout=SECONDS --poll=30  how long wait waits (default 0: no limit), and how often it polls
#   --keep                       run leaves the machine when trained
#   --dry-run                    prints the commands instead
#
# All verbs can be repeated; run, interrupted and repeated, follows the training that continued meanwhile. Any verb that
# leaves a billable machine running, or may have, prints how to delete it.
# Several workers need ssh-add ~/.ssh/google_compute_engine first (gcloud's advice).
# exit codes: 0 done (status: trained); 1 an error, or training failed; 2 wrong flags; 3 the machine is gone: resume;
# 4 not yet (wait timed out; status: running or not started); 75 stopped after a checkpoint: start; 130 Ctrl-C
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
root="$(dirname "$here")"
. "$here/common.sh"
. "$here/machine.sh"

name="${SIMCAS_TPU_NAME:-}" zone="${SIMCAS_TPU_ZONE:-}" project="${SIMCAS_TPU_PROJECT:-}" type="${SIMCAS_TPU_TYPE:-}"
version="${SIMCAS_TPU_VERSION:-}" tier="${SIMCAS_TPU_TIER:-spot}" workdir="${SIMCAS_TPU_WORKDIR:-}"
prepare="${SIMCAS_TPU_PREPARE:-}" create_flags="${SIMCAS_TPU_CREATE_FLAGS:-}" worker="${SIMCAS_TPU_WORKER:-0}"
to="${SIMCAS_TPU_TO:-}" timeout="${SIMCAS_TPU_TIMEOUT:-0}" poll="${SIMCAS_TPU_POLL:-30}" keep="${SIMCAS_TPU_KEEP:-}"
spot="" on_demand="" dry_run="" verb="" train=() left="may still be there" workers="" state=""

# --- verbs ----------------------------------------------------------------------------------------------------------

create() {
  local tier_flag=() more=()
  look
  if dead; then fail 3 "$name is $state: resume, or delete"; return; fi
  case "$state" in
    NONE) ;;
    UNKNOWN) cannot_ask; return ;;
    *) say "$name is there already: $state"; return 0 ;;
  esac
  [ "$tier" != spot ] || tier_flag=(--spot)
  read -ra more <<<"$create_flags"
  left="may still be there"
  gc queued-resources create "$name" --node-id="$name" --accelerator-type="$type" --runtime-version="$version" \
    "${tier_flag[@]}" "${more[@]}" 2>"$tmp/create" || {
    cat "$tmp/create" >&2
    look
    fail 1 "$name was not created: $(grep -v '^ *$' "$tmp/create" | tail -n 1)"
    return
  }
  assumed=ACTIVE left="is still there"
  say "asked for $name ($type, $tier) in $zone"
}

wait_for() { # the state ACTIVE
  local before="" begin=$SECONDS
  while look_patiently || return; do
    [ "$state" = "$before" ] || say "$name: $state"
    before="$state"
    if dead; then fail 3 "$name is $state: resume, or delete"; return; fi
    case "$state" in
      ACTIVE) return 0 ;;
      NONE) fail 1 "there is no machine $name in $zone: create it first"; return ;;
    esac
    [ "$timeout" -eq 0 ] || [ $((SECONDS - begin)) -lt "$timeout" ] ||
      fail 4 "$name is $state after $timeout seconds; wait again, or delete it" || return
    sleep "$poll"
  done
}

copy() {
  local untracked
  need_machine || return
  git -C "$root" rev-parse --git-dir >/dev/null 2>&1 || fail 1 "$root is no git checkout: copy sends what git tracks" || return
  untracked="$(git -C "$root" ls-files --others --exclude-standard)"
  [ -z "$untracked" ] || echo "warning: not sent, because git does not track it (git add): ${untracked//$'\n'/, }" >&2
  [ -e "$tmp/simcas-code.tgz" ] || ( # once: a run that resumes continues with the code it started with
    cd "$root" || exit 1
    git ls-files -z | while IFS= read -r -d '' file; do [ ! -e "$file" ] || printf '%s\0' "$file"; done |
      tar --null --files-from=- -czf "$tmp/simcas-code.tgz"
  ) || return 1
  gc tpu-vm scp "$tmp/simcas-code.tgz" "$name:simcas-code.tgz" --worker=all \
    "${alive[@]/ssh-flag/scp-flag}" >"$tmp/error" 2>&1 ||
    fail 1 "copying failed: $(tail -n 1 "$tmp/error"); it is safe to repeat" || return
  everywhere "copy ($(git -C "$root" describe --always --dirty))" \
    "mkdir -p simcas && if [ -e simcas/job/lock ] && ! flock -n simcas/job/lock true; \
then echo 'training is running: stop it first'; false; \
else rm -rf simcas/new && mkdir simcas/new && tar -xzf simcas-code.tgz -C simcas/new && \
rm -rf simcas/code && mv simcas/new simcas/code; fi"
}

install() {
  need_machine || return
  everywhere install "${prepare:+bash -c $(quote "$prepare") && }bash simcas/code/launch/worker.sh install"
}

start() {
  local arguments=("--workdir=$workdir") buckets=() argument bucket
  for argument in "${train[@]}"; do
    if [[ "$argument" == --*=gs://* ]]; then # as the workers see it
      bucket="${argument#*gs://}" buckets+=("${bucket%%/*}")
      argument="${argument/gs:\/\//../buckets/}"
    fi
    arguments+=("$argument")
  done
  need_machine && read_workers || return
  if [ "$running" -gt 0 ] && [ "$running" -lt "$workers" ]; then
    fail 1 "training runs on $running of $workers workers only: stop it, then start"
    return
  fi
  # Without JAX_PLATFORMS, a TPU that fails to start would mean training on the host's CPU at the TPU's price.
  everywhere start "cd simcas/code && bash launch/worker.sh mount $(quote "${buckets[@]}") && bash launch/job.sh start ../job \
env JAX_PLATFORMS=tpu,cpu ../venv/bin/python -u -m jax_simcas.train --distributed=auto $(quote "${arguments[@]}")"
}

newest_checkpoint() { # prints it, with or without a machine; orbax writes commit_success.txt when a checkpoint is complete
  local found step
  found="$(do_or_print gcloud storage ls "$workdir/checkpoints/*/commit_success.txt" 2>"$tmp/error")" ||
    grep -q 'matched no objects' "$tmp/error" ||
    { echo "warning: cannot list the checkpoints in $workdir: $(tail -n 1 "$tmp/error")" >&2 && return; }
  step="$(sed -nE 's|.*/([0-9]+)/commit_success\.txt$|\1|p' <<<"$found" | sort -n | tail -n 1)"
  say "newest checkpoint in $workdir: ${step:-none}"
}

status() {
  look
  say "$name: $state"
  [ -z "$workdir" ] || newest_checkpoint
  [ "$state" = ACTIVE ] || { need_machine || return; }
  read_workers || return 1
  [ -z "$dry_run" ] || return 0
  printf '%s' "$report"
  return "$verdict"
}

logs() { # logs [LINES]
  need_machine || return
  gc tpu-vm ssh "$name" --worker="$worker" "${alive[@]}" \
    --command="bash simcas/code/launch/job.sh logs simcas/job ${1:-100}"
}

stop() {
  need_machine || return
  everywhere stop 'bash simcas/code/launch/job.sh stop simcas/job'
}

delete() {
  local begin=$SECONDS node=""
  look
  if [ "$state" != NONE ]; then
    gc queued-resources delete "$name" --force >"$tmp/delete" 2>&1 || true
    [ -z "$dry_run" ] || assumed=NONE
    while look && [ "$state" != NONE ]; do # until gcloud no longer finds it
      case "$state" in DELETING | SUSPENDING) [ $((SECONDS - begin)) -lt 600 ] && sleep "$poll" && continue ;; esac
      fail 1 "$name is not deleted, it is $state: $(tail -n 1 "$tmp/delete"); try again" || return
    done
  fi
  left="may still be there"
  node="$(gc tpu-vm describe "$name" --format='value(state)' 2>"$tmp/error")" || gone ||
    fail 1 "cannot ask whether the node $name is gone: $(tail -n 1 "$tmp/error"); try again" || return
  if [ -n "$node" ]; then # a node without its queued resource is billed all the same
    gc tpu-vm delete "$name" >"$tmp/error" 2>&1 || fail 1 "the node $name is not deleted: $(tail -n 1 "$tmp/error")" || return
  fi
  left=""
  say "there is no $name in $zone (project $project): nothing there costs any more"
}

resume() {
  look
  if dead; then delete || return; fi
  create && wait_for && copy && install && start
}

# A machine that FAILED would fail again, and one that is DELETING somebody deletes.
taken_away() { dead && [ "$state" != FAILED ] && [ "$state" != DELETING ]; }

run() {
  local restarts=0 unheard=0 lines=100 code
  while look_patiently || return; do
    running=0 silent=0
    [ "$state" != ACTIVE ] || read_workers || true
    if [ "$silent" -gt 0 ] && [ -z "$dry_run" ] && [ "$((unheard += 1))" -lt 20 ]; then
      sleep "$poll" && continue
    fi
    unheard=0
    if [ "$running" -eq 0 ]; then
      resume && code=0 || code=$?
      if [ "$code" -ne 0 ]; then
        look
        if taken_away; then sleep "$poll" && continue; fi
        return "$code"
      fi
      lines=100
    fi
    logs "$lines" || true
    lines=10
    [ -z "$dry_run" ] || break
    verdict=4 # if status cannot even ask
    status && break
    code="$verdict"
    sleep "$poll" # workers show a preemption before the machine's state does
    look_patiently || return
    if taken_away; then
      say "$name was taken away: resuming from the checkpoints in $workdir"
    elif [ "$state" = NONE ] || [ "$state" = DELETING ]; then
      fail 1 "somebody else deleted $name; run again" || return
    elif [ "$code" -eq 75 ]; then
      restarts=$((restarts + 1))
      [ "$restarts" -le 3 ] || fail 1 "training broke off $restarts times on a machine that is there" || return
      stop || true
    elif [ "$code" -ne 4 ]; then
      fail 1 "training failed; the end of a log is above, tpu.sh logs --worker=N shows the others'" || return
    fi
  done
  [ -n "$keep" ] || delete
}

fetch() {
  look
  to="${to:-$root/runs/${workdir##*/}}"
  mkdir -p "$to" || return 1
  do_or_print gcloud storage rsync --recursive "$workdir" "$to" || fail 1 "fetching $workdir failed; it is safe to repeat" || return
  [ "$state" = ACTIVE ] && on_workers 'cat simcas/job/log' && [ -z "$dry_run" ] && mkdir -p "$to/logs" &&
    cp "$tmp/workers/"*.log "$to/logs/"
  say "fetched into $to"
}

# --- flags ----------------------------------------------------------------------------------------------------------

read_arguments "run create wait copy install start logs status stop resume fetch delete" \
  "--name --zone --project --type --version --workdir --prepare --create-flags --worker --to --timeout --poll" \
  "--spot --on-demand --keep --dry-run" "$@" || exit

check_flags() {
  [[ "$name" =~ ^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$ ]] ||
    fail 2 "--name='$name': give a name of small letters, digits and hyphens (or SIMCAS_TPU_NAME)" || return
  [ -n "$zone" ] || fail 2 "no zone: add --zone=ZONE, e.g. us-west4-a (or SIMCAS_TPU_ZONE)" || return
  [[ "$timeout" =~ ^[0-9]+$ ]] || fail 2 "--timeout=$timeout: expected whole seconds" || return
  [[ "$poll" =~ ^[0-9]+(\.[0-9]+)?$ ]] || fail 2 "--poll=$poll: expected seconds" || return
  [[ "$worker" =~ ^[0-9]+$ ]] || fail 2 "--worker=$worker: expected a worker's number" || return
  [ -z "$spot" ] || [ -z "$on_demand" ] || fail 2 "--spot and --on-demand: give one of them" || return
  [ -z "$spot" ] || tier=spot
  [ -z "$on_demand" ] || tier=on-demand
  case "$tier" in spot | on-demand) ;; *) fail 2 "SIMCAS_TPU_TIER=$tier: expected spot or on-demand" || return ;; esac
  case "$verb" in
    run | resume | start | fetch | status)
      workdir="${workdir%/}"
      [[ "$workdir" =~ ^gs://[^/]+/. || "$verb$workdir" = status ]] ||
        fail 2 "--workdir='$workdir': expected gs://BUCKET/PATH, a disk of the machine goes with it" || return
      ;;
  esac
  case "$verb" in run | resume | start) check_train_arguments "$root" "${train[@]}" && check_config_goes_along || return ;; esac
  case "$verb" in run | resume | start) note_on_batch "${train[@]}" ;; esac
  case "$verb" in
    run | resume | create)
      [ -n "$type" ] || fail 2 "no type: add --type=TYPE, e.g. v5litepod-16 (or SIMCAS_TPU_TYPE)" || return
      [ -n "$version" ] || case "$type" in
        v2-* | v3-* | v4-*) version=tpu-ubuntu2204-base ;;
        v5litepod-*) version=v2-alpha-tpuv5-lite ;;
        v5p-*) version=v2-alpha-tpuv5 ;;
        v6e-*) version=v2-alpha-tpuv6e ;;
        *) fail 2 "--type=$type: no runtime version is known for it; add --version=VERSION" || return ;;
      esac
      ;;
  esac
}

check_config_goes_along() { # copy sends what git tracks
  local config
  config="$(printf '%s\n' "${train[@]}" | sed -n 's/^--config=//p' | tail -n 1)"
  [ -f "$root/configs/${config%%:*}.py" ] && config="configs/${config%%:*}.py" # one of ours, by name
  if [[ "$config" == /* ]] || ! git -C "$root" ls-files --error-unmatch -- "${config%%:*}" >/dev/null 2>&1; then
    fail 2 "--config=$config would not be sent to the workers: give a path within the checkout, and git add it"
  fi
}

check_gcloud() {
  if [ -n "$dry_run" ]; then
    project="${project:-PROJECT}"
    return 0
  fi
  command -v gcloud >/dev/null || fail 1 "no gcloud on PATH: install the Google Cloud CLI, then gcloud auth login" || return
  [ -n "$(gcloud auth list --filter=status:ACTIVE --format='value(account)' 2>/dev/null)" ] ||
    fail 1 "gcloud is not logged in: gcloud auth login" || return
  project="${project:-$(gcloud config get-value project 2>/dev/null)}"
  [ -n "$project" ] || fail 2 "no project: add --project=PROJECT, or gcloud config set project PROJECT" || return
}

good_bye() { # what is left that costs, whatever happened; on fd 4: an interrupted call's errors go to a file
  local code=$?
  rm -rf "$tmp"
  if [ -n "$left" ] && [ -z "$dry_run" ]; then
    echo "note: the paid machine $name $left; delete it with:" \
      "$(quote bash "$here/tpu.sh" delete "--name=$name" "--zone=$zone" "--project=$project")" >&4
  fi
  exit "$code"
}

check_flags || exit
check_gcloud || exit
exec 3>&1 4>&2
tmp="$(mktemp -d)"
trap good_bye EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
# --dry-run asks nobody: what the state would be at each verb's start
case "$verb" in run | create) assumed=NONE ;; resume) assumed=SUSPENDED ;; *) assumed=ACTIVE ;; esac
case "$verb" in wait) wait_for ;; *) "$verb" ;; esac
