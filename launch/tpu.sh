#!/usr/bin/env bash
# Runs a command on a Cloud TPU: creates the VMs, copies and installs this code, runs on all workers, collects, deletes.
#
#     bash launch/tpu.sh --name=gan --zone=us-central2-b --type=v4-16 -- \
#         python launch/train.py --config=configs/cifar10.py --workdir=gs://BUCKET/runs/cifar10 \
#         --config.data.data_dir=gs://BUCKET/data
#
#   --name=NAME       name of the TPU VM
#   --zone=ZONE       zone, such as us-central2-b
#   --type=TYPE       the accelerator, such as v4-8 (one worker) or v4-16 (two)
#   --version=NAME    the runtime [that of the type]
#   --project=ID      Google Cloud project [gcloud's default]
#   --spot            a cheaper, preemptible TPU; after a preemption it is created again and the run resumes
#   --retries=N       maximal number of preemptions [10]
#   --collect=DIR     copy this folder of the first worker, relative to the code, to the same folder here at the end
#   --keep            keep the TPU VM
#   --dry_run         print the commands
#
# The TPU is deleted at the end, also after an error, unless --keep is given. With --spot use a workdir on gs://, which
# outlives the TPU. gcloud must be logged in. The last commit runs, without uncommitted changes.
set -euo pipefail
cd "$(dirname "$0")/.."

mistake() {
  echo "error: $1" >&2
  exit 2
}
name='' zone='' type='' version='' project='' spot='' retries=10 collect='' keep='' dry_run=''
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  value=${1#*=}
  case $1 in
    --name=*) name=$value ;;
    --zone=*) zone=$value ;;
    --type=*) type=$value ;;
    --version=*) version=$value ;;
    --project=*) project=$value ;;
    --retries=*) retries=$value ;;
    --collect=*) collect=$value ;;
    --spot) spot=1 ;;
    --keep) keep=1 ;;
    --dry_run) dry_run=1 ;;
    *) mistake "unexpected argument '$1': see the top of launch/tpu.sh" ;;
  esac
  shift
done
[ $# -gt 1 ] || mistake "there is no command: bash launch/tpu.sh [FLAGS] -- python launch/train.py ..."
shift
for flag in name zone type; do
  [[ ${!flag} =~ ^[a-z0-9-]+$ ]] || mistake "--$flag must be given, in small letters, digits and dashes, not '${!flag}'"
done
case $type in
  v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
  v5p-*) runtime=v2-alpha-tpuv5 ;;
  v6e-*) runtime=v2-alpha-tpuv6e ;;
  *) runtime='tpu-ubuntu2204-base' ;;
esac
version=${version:-$runtime}
[[ $retries =~ ^[0-9]+$ ]] || mistake "--retries must be a number, not '$retries'"
[ -z "$collect" ] || { [[ $collect != /* ]] && [[ $collect != *..* ]]; } ||
  mistake "--collect must be a folder below the code, not '$collect'"
[ -n "$dry_run" ] || command -v gcloud > /dev/null ||
  mistake "there is no gcloud here: install the Google Cloud CLI and log in"

where=("--zone=$zone" ${project:+"--project=$project"})
tpu=(gcloud compute tpus tpu-vm)

call() {
  if [ -n "$dry_run" ]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}
on_all() {
  call "${tpu[@]}" ssh "$name" "${where[@]}" --worker=all "--command=$1"
}
delete() {
  call "${tpu[@]}" delete "$name" "${where[@]}" --quiet
}
state() {
  "${tpu[@]}" describe "$name" "${where[@]}" '--format=value(state)' 2> /dev/null || echo GONE
}

packed=$(mktemp -d)
made=''
# shellcheck disable=SC2317,SC2329 # Called by the trap.
leave() {
  code=$?
  trap - EXIT INT TERM
  rm -rf "$packed"
  if [ -n "$made" ] && [ -z "$keep" ]; then
    delete || echo "error: $name could not be deleted and costs money: ${tpu[*]} delete $name ${where[*]}" >&2
  fi
  exit "$code"
}
trap leave EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

git archive --format=tar.gz --prefix=robust_gan/ -o "$packed/robust_gan.tar.gz" HEAD
install="tar -xzf robust_gan.tar.gz && cd robust_gan && { [ -x .venv/bin/pip ] || python3.11 -m venv .venv ||
  { sudo apt-get update -q && sudo apt-get install -qy python3.11-venv && python3.11 -m venv .venv; }; } &&
  .venv/bin/pip install -q -e \".[tpu,gcs]\""
run=$(printf '%q ' "$@")
# PATH starts with the environment on the workers, so that the command finds its python.
run="cd robust_gan && PATH=\$PWD/.venv/bin:\$PATH ${run% } --distributed"
for ((attempt = 0; ; attempt++)); do
  made=1
  call "${tpu[@]}" create "$name" "${where[@]}" "--accelerator-type=$type" "--version=$version" ${spot:+--spot}
  code=0
  {
    call "${tpu[@]}" scp "$packed/robust_gan.tar.gz" "$name:" "${where[@]}" --worker=all &&
      on_all "$install" &&
      on_all "$run"
  } || code=$?
  [ -n "$dry_run" ] && break
  [ "$code" -ne 0 ] && [ -n "$spot" ] && [ "$attempt" -lt "$retries" ] || break
  found=$(state)
  [ "$found" != READY ] || break # The command failed, and would fail again.
  echo "$name was preempted (its state is $found): creating it again" >&2
  delete || true
done
if [ -n "$collect" ]; then
  mkdir -p "$(dirname "$collect")"
  call "${tpu[@]}" scp --recurse "$name:robust_gan/$collect" "$(dirname "$collect")/" "${where[@]}" --worker=0 || code=$?
fi
exit "$code"
