#!/usr/bin/env bash
# Trains on the GPUs of this machine, in the background; or on a Slurm cluster.
#
#   bash launch/gpu.sh start --workdir=runs/arxiv -- --config=configs/arxiv.py --config.data.data_dir=DATA
#   bash launch/gpu.sh status --workdir=runs/arxiv      running, exit CODE, lost, not started
#   bash launch/gpu.sh logs --workdir=runs/arxiv        follows until training ends
#   bash launch/gpu.sh stop --workdir=runs/arxiv        training saves and ends; start resumes
#   bash launch/gpu.sh slurm --workdir=/shared/runs/arxiv --nodes=2 --gpus=8 --time=24:00:00 \
#       --sbatch-flags='--partition=gpu' -- --config=configs/arxiv.py --config.data.data_dir=/shared/data \
#       --config.data.batch_size=16 --config.optimizer.accumulate_step=1
#
# start uses all GPUs in one process, or those of --gpus=0,1; it makes the environment with [cuda12] or [cuda13] first.
# Paths in train's arguments are relative to the checkout.
# slurm writes WORKDIR/job.sbatch and submits it: one process per node, which drives its --gpus=COUNT. Training gets
# SIGTERM 5 minutes before the time limit, saves and exits with 75, and the job is requeued, as after a preemption.
# All nodes must see the checkout, the environment and the workdir. A second submission waits for the first.
#   --dry-run   prints the commands, or the sbatch script
# exit codes: 0 done (status: trained), 1 an error, 2 wrong flags; status: 1 ended otherwise, 4 running, 5 not started
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
. "$here/environment.sh"
. "$here/common.sh"

workdir="" gpus="" nodes=1 time="" sbatch_flags="" dry_run="" verb="" train=()

start() {
  local settings=('JAX_PLATFORMS=cuda,cpu') # without it, a failing driver would mean training on the CPU
  [ -z "$gpus" ] || settings+=("CUDA_VISIBLE_DEVICES=$gpus")
  set -- bash "$here/job.sh" start "$workdir/job" \
    env "${settings[@]}" "$venv/bin/python" -u -m jax_simcas.train "--workdir=$workdir" "${train[@]}"
  if [ -n "$dry_run" ]; then
    echo "make_environment $(cuda_extra)"
    quote "$@"
    return
  fi
  nvidia-smi --list-gpus 2>/dev/null | grep -q . || fail 1 "no GPU: nvidia-smi is missing, or finds none" || return
  make_environment "$(cuda_extra)" && cd "$root" && "$@"
}

script() { # the sbatch script
  local ids
  ids="$(seq -s, 0 $((gpus - 1)))"
  cat <<SBATCH
#!/bin/bash
#SBATCH --job-name=simcas-$(printf '%s' "$workdir" | cksum | cut -d ' ' -f 1)
#SBATCH --dependency=singleton
#SBATCH --nodes=$nodes
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=$gpus
#SBATCH --time=$time
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
cd $(quote "$root") || exit 1
# On Slurm, JAX would otherwise give each process only the device with its own number.
export JAX_PLATFORMS=cuda,cpu JAX_LOCAL_DEVICE_IDS=$ids
srun $(quote "$venv/bin/python" -u -m jax_simcas.train --distributed=auto "--workdir=$workdir" "${train[@]}")
code=\$?
[ "\$code" -ne 75 ] || scontrol requeue "\$SLURM_JOB_ID"
exit "\$code"
SBATCH
}

slurm() {
  local more=()
  [[ "$gpus" =~ ^[1-9][0-9]*$ ]] || fail 2 "--gpus='$gpus': give the number of GPUs of a node" || return
  [[ "$nodes" =~ ^[1-9][0-9]*$ ]] || fail 2 "--nodes='$nodes': expected a number" || return
  [[ "$time" =~ ^[0-9:-]+$ ]] || fail 2 "--time='$time': give the job's time limit, e.g. 24:00:00" || return
  if [ -n "$dry_run" ]; then script && return; fi
  command -v sbatch >/dev/null || fail 1 "no sbatch on PATH: slurm works on a login node of a Slurm cluster" || return
  make_environment "$(cuda_extra)" || return
  script >"$workdir/job.sbatch" || return
  read -ra more <<<"$sbatch_flags"
  sbatch "${more[@]}" --output="$workdir/slurm-%j.log" "$workdir/job.sbatch" || return
  echo "state: squeue --me; stop: scancel JOB; log: $workdir/slurm-JOB.log"
}

read_arguments "start status logs stop slurm" "--workdir --gpus --nodes --time --sbatch-flags" "--dry-run" "$@" || exit
[ -n "$workdir" ] || fail 2 "no workdir: add --workdir=DIR" || exit
case "$verb" in
  start | slurm)
    check_train_arguments "$root" "${train[@]}" || exit
    [ "$nodes" = 1 ] || note_on_batch "${train[@]}"
    [ -n "$dry_run" ] || mkdir -p "$workdir" || exit
    case "$workdir" in /*) ;; *) workdir="$PWD/$workdir" ;; esac
    "$verb"
    ;;
  *) exec bash "$here/job.sh" "$verb" "$workdir/job" ;;
esac
