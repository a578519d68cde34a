#!/usr/bin/env bash
# A run on a Cloud TPU slice, from your machine; for spot ones, made again when it is taken away.
#
#   export TPU_NAME=ctssl ZONE=ZONE STORE=ADDRESS:/EXPORT
#   launch/tpu_vm.sh create
#   launch/tpu_vm.sh setup
#   launch/tpu_vm.sh run ctssl_jax.main --config=configs/spark.py \
#       --config.data.path=/mnt/ctssl/scans --workdir=/mnt/ctssl/spark
#   launch/tpu_vm.sh status | stop | delete
#
# --dry_run before the sub-command prints the commands instead. `setup` installs the code of the last
# commit. `run` shows the workers' logs and returns the run's exit code. Ctrl-C ends only the showing and
# the watch over the slice; `stop` ends the run, `run` again restarts it from its last step.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/exit_codes.sh

ACCELERATOR=${ACCELERATOR:-v5litepod-16}
RUNTIME=${RUNTIME:-v2-alpha-tpuv5-lite}
SPOT=${SPOT:-1}                  # 0: on demand
STORE=${STORE:-}                 # ADDRESS:/EXPORT of an NFS server that all workers mount
MOUNT=${MOUNT:-/mnt/ctssl}       # where
MAX_RESTARTS=${MAX_RESTARTS:-20} # of one `run`
POLL_S=${POLL_S:-30}
DRY_RUN=0

cloud() {
  local command=(gcloud compute tpus "$@" --zone="$ZONE")
  if [[ -n ${PROJECT:-} ]]; then command+=(--project="$PROJECT"); fi
  if ((DRY_RUN)); then
    printf '%q ' "${command[@]}"
    echo
  else
    "${command[@]}"
  fi
}

# Runs a command, given as words, on all workers, in the project's folder.
on_workers() {
  local words
  printf -v words '%q ' "$@"
  cloud tpu-vm ssh "$TPU_NAME" --worker=all --command="cd ctssl_jax && exec $words"
}

create() {
  local spot=() state
  if ((SPOT)); then spot=(--spot); fi
  cloud queued-resources create "$TPU_NAME" --node-id="$TPU_NAME" \
    --accelerator-type="$ACCELERATOR" --runtime-version="$RUNTIME" "${spot[@]}"
  if ((DRY_RUN)); then return; fi
  while true; do
    state=$(cloud queued-resources describe "$TPU_NAME" --format='value(state.state)') \
      || state=unknown
    echo "$TPU_NAME: $state" >&2
    case $state in
      ACTIVE) return ;;
      FAILED | SUSPENDING | SUSPENDED)
        echo "tpu_vm.sh: the request for $TPU_NAME ended as $state; delete it and try again" >&2
        return 6
        ;;
    esac
    sleep "$POLL_S"
  done
}

setup() {
  local archive
  archive=$(mktemp -d)/ctssl_jax.tar.gz
  git archive --output="$archive" HEAD
  cloud tpu-vm scp "$archive" "$TPU_NAME:ctssl_jax.tar.gz" --worker=all
  rm -r "$(dirname "$archive")"
  cloud tpu-vm ssh "$TPU_NAME" --worker=all \
    --command='rm -rf ctssl_jax && mkdir ctssl_jax && tar -xzf ctssl_jax.tar.gz -C ctssl_jax'
  on_workers env STORE="$STORE" MOUNT="$MOUNT" launch/tpu_worker.sh setup
}

node_state() {
  cloud tpu-vm describe "$TPU_NAME" --format='value(state)' || true
}

run() {
  local code restarts state
  trap 'echo "still running on the workers; to end it: launch/tpu_vm.sh stop" >&2; exit 130' INT
  for ((restarts = 0; ; restarts++)); do
    code=0
    on_workers launch/tpu_worker.sh run "$@" || code=$?
    case $code in 0 | 2 | 3 | 4 | 5 | 130) return "$code" ;; esac
    state=$(node_state)
    # 255: the connection broke. gcloud's own failures, such as of a slice that is gone, are 1.
    if [[ $state == READY ]] && ! may_retry "$code" && ((code != 255)); then return "$code"; fi
    if ((restarts >= MAX_RESTARTS)); then
      echo "tpu_vm.sh: exit code $code after $restarts restarts: given up" >&2
      return "$code"
    fi
    echo "exit code $code, slice ${state:-gone}: again, restart $((restarts + 1))" >&2
    if [[ $state == READY ]]; then
      sleep "$POLL_S"
    else
      delete || true # there may be nothing left
      create
      setup
    fi
  done
}

stop() { on_workers launch/tpu_worker.sh stop; }

status() {
  cloud queued-resources describe "$TPU_NAME" --format='value(state.state)'
  node_state
  on_workers launch/tpu_worker.sh status
}

delete() { cloud queued-resources delete "$TPU_NAME" --force --quiet; }

if [[ ${1:-} == --dry_run ]]; then
  DRY_RUN=1
  shift
fi
case ${1:-} in
  create | setup | run | stop | status | delete) ;;
  *)
    echo "tpu_vm.sh: give create, setup, run MODULE [FLAGS], stop, status or delete" >&2
    exit 2
    ;;
esac
for name in TPU_NAME ZONE; do
  if [[ -z ${!name:-} ]]; then
    echo "tpu_vm.sh: set $name" >&2
    exit 2
  fi
done
if [[ $1 == run && -z ${2:-} ]]; then
  echo "tpu_vm.sh: give a module: run ctssl_jax.main --config=..." >&2
  exit 2
fi
"$@"
