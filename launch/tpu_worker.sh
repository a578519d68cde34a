#!/usr/bin/env bash
# What launch/tpu_vm.sh calls on every worker of a TPU VM: setup, run MODULE [FLAGS], stop, status.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

VENV=${VENV:-$HOME/ctssl_venv}
PID_FILE=${PID_FILE:-$HOME/ctssl.pid}
LOG=${LOG:-$HOME/ctssl.log}
PORT=${PORT:-8476} # and the next one
STOP_S=${STOP_S:-300} # for an earlier run to save and end
MOUNT=${MOUNT:-/mnt/ctssl}
STORE=${STORE:-} # ADDRESS:/EXPORT of an NFS server, mounted at MOUNT

metadata() {
  curl --fail --silent --show-error --retry 5 --header 'Metadata-Flavor: Google' \
    "http://${GCE_METADATA_HOST:-metadata.google.internal}/computeMetadata/v1/instance/attributes/$1"
}

setup() {
  if ! command -v python3.11 >/dev/null || [[ -n $STORE ]]; then
    sudo apt-get update -q
    sudo apt-get install -y -q python3.11 python3.11-venv nfs-common
  fi
  python3.11 -m venv "$VENV"
  "$VENV/bin/pip" install --quiet --disable-pip-version-check -c requirements.txt -e '.[report,tpu]'
  if [[ -n $STORE ]] && ! mountpoint --quiet "$MOUNT"; then
    sudo mkdir -p "$MOUNT"
    sudo mount -t nfs "$STORE" "$MOUNT"
  fi
}

# The process that `run` left, if it still runs; another may have got its number since.
running() {
  local pid
  pid=$(cat "$PID_FILE" 2>/dev/null) \
    && grep -qaF "$VENV/bin/python" "/proc/$pid/cmdline" 2>/dev/null && echo "$pid"
}

stop() {
  local pid
  pid=$(running) || return 0
  kill -TERM "$pid"
  for ((second = 0; second < STOP_S; second++)); do
    running >/dev/null || return 0
    sleep 1
  done
  kill -KILL "$pid"
}

run() {
  local module=$1 workers number pid from flags=()
  shift
  stop # a run whose connection broke goes on and holds the TPU
  workers=$(metadata worker-network-endpoints)
  number=$(metadata agent-worker-number)
  IFS=, read -ra workers <<<"$workers"
  if ((${#workers[@]} > 1)); then
    # An entry is a host, or name:id:address in the older form.
    flags=("--coordinator=${workers[0]##*:}:$PORT" "--processes=${#workers[@]}" "--process=$number")
  fi
  # Into a file, which is shown: writing to a connection that broke would end the run.
  touch "$LOG"
  from=$(($(stat --format=%s "$LOG") + 1))
  "$VENV/bin/python" -u -m "$module" "$@" "${flags[@]}" </dev/null >>"$LOG" 2>&1 &
  pid=$!
  echo "$pid" >"$PID_FILE"
  tail --bytes="+$from" --follow --pid="$pid" --sleep-interval="${POLL_S:-1}" "$LOG" || true
  wait "$pid"
}

status() {
  if running >/dev/null; then echo running; else echo "not running"; fi
}

case ${1:-} in
  setup | stop | status) "$1" ;;
  run) shift && run "$@" ;;
  *)
    echo "tpu_worker.sh: give setup, run MODULE [FLAGS], stop or status" >&2
    exit 2
    ;;
esac
