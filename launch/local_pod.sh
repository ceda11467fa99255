#!/usr/bin/env bash
# Runs a command as N processes on this machine, over loopback, to test what runs on several machines.
#
#     bash launch/local_pod.sh 2 -- python launch/train.py --config=configs/digits.py --workdir=runs/pod
#
# Each process gets --coordinator, --num_processes and --process_id, and its lines begin with [process_id]. SIGTERM and
# Ctrl-C are forwarded to all. The exit code is the first that is not 0. --dry_run, before the --, prints the commands.
set -uo pipefail

usage() {
  echo "error: $1: bash launch/local_pod.sh N [--dry_run] -- COMMAND" >&2
  exit 2
}
count=${1:-} dry_run=
[[ $count =~ ^[1-9][0-9]*$ ]] || usage "the number of processes must be at least 1, not '$count'"
shift
if [ "${1:-}" = --dry_run ]; then
  dry_run=1
  shift
fi
[ "${1:-}" = -- ] && [ $# -gt 1 ] || usage "there is no command"
shift

# A free port.
port=$((20000 + RANDOM % 12000))
while (exec 3<> "/dev/tcp/127.0.0.1/$port") 2> /dev/null; do
  port=$((20000 + RANDOM % 12000))
done

# Separate process groups: a signal of the terminal reaches only this script, which forwards it once.
set -m
pids=() signalled=
# shellcheck disable=SC2317,SC2329 # Called by the trap.
pass_on() {
  signalled=1
  kill -TERM "${pids[@]}" 2> /dev/null
}
trap pass_on INT TERM
for ((process = 0; process < count; process++)); do
  command=("$@" "--coordinator=127.0.0.1:$port" "--num_processes=$count" "--process_id=$process" --join_timeout=60)
  if [ -n "$dry_run" ]; then
    printf '%q ' "${command[@]}"
    echo
    continue
  fi
  "${command[@]}" > >(trap '' INT TERM && exec sed -u "s/^/[$process] /") 2>&1 &
  pids+=($!)
done

code=0
for pid in ${pids[@]+"${pids[@]}"}; do
  while :; do
    wait "$pid"
    ended=$?
    [ -n "$signalled" ] || break
    signalled= # The signal ended the wait, not the process.
  done
  [ "$code" -ne 0 ] || code=$ended
done
exit "$code"
