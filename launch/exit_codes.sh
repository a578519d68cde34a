# shellcheck shell=bash
# Sourced by the launch scripts: what the exit codes of docs/runs.md mean to a scheduler.

# Succeeds where the same command may be started again by itself: devices (6), pre-empted (75), JAX
# aborted because another machine vanished (134), killed (137), and SIGUSR1 or SIGTERM before Python
# could listen (138, 143). Never: usage (2), data (3), diverged (4); storage (5) wants mending first.
may_retry() {
  case $1 in
    6 | 75 | 134 | 137 | 138 | 143) return 0 ;;
    *) return 1 ;;
  esac
}
