# shellcheck shell=bash
# Sourced by the sbatch scripts: runs a step, then requeues the job or ends it.
source launch/exit_codes.sh

PYTHON=${PYTHON:-.venv/bin/python}
MAX_RESTARTS=${MAX_RESTARTS:-20} # of a job, by whatever reason; its checkpoints are kept beyond

# The step, one process a task. It must be a step even for one task: `--signal` without B: goes to
# steps and not to this shell. (With B: it would have to be passed on, and srun answers a SIGTERM of
# its own by killing the tasks.) A first task to end must not take the others along while they save.
run_step() {
  srun --label --kill-on-bad-exit=0 --wait=600 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
    "$PYTHON" -u -m "$@"
}

# This job's name for scontrol. In an array SLURM_JOB_ID may be that of the whole array.
job() {
  if [[ -n ${SLURM_ARRAY_TASK_ID:-} ]]; then
    echo "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"
  else
    echo "$SLURM_JOB_ID"
  fi
}

# Ends the job with exit code $1, in the queue again where that may help. A job that Slurm is taking
# down (scancel, pre-emption) is no longer RUNNING and left to Slurm. No trap on SIGTERM: scancel ends
# this shell at once, so that nothing here undoes it.
finish() {
  local code=$1 restarts=${SLURM_RESTART_COUNT:-0}
  if may_retry "$code"; then
    if ((restarts >= MAX_RESTARTS)); then
      echo "exit code $code after $restarts restarts: not requeued" >&2
    elif [[ $(squeue --noheader --jobs="$(job)" --format=%T) == RUNNING ]]; then
      echo "exit code $code: requeued, restart $((restarts + 1)) of at most $MAX_RESTARTS" >&2
      scontrol requeue "$(job)"
    fi
  fi
  exit "$code"
}
