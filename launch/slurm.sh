#!/usr/bin/env bash
# Submits a command to SLURM as one run over several nodes. The run saves a checkpoint before its time limit and before
# a preemption. SLURM requeues a preempted run; after the time limit, submit the same command again to resume.
#
#     bash launch/slurm.sh --nodes=2 --gpus_per_node=8 --partition=gpu -- \
#         .venv/bin/python launch/train.py --config=configs/cifar10.py --workdir=/shared/runs/cifar10
#
#   --nodes=N           nodes [1]
#   --gpus_per_node=N   GPUs per node [0]
#   --per=node|gpu      one process per node, with all its GPUs, or per GPU [node]
#   --name=NAME         name of the job and of its log NAME-JOB.log [robust_gan]
#   --time=LIMIT        time limit in the format of sbatch [24:00:00]
#   --grace=SECONDS     time between SIGTERM and the limit or preemption [120]
#   --dry_run           print the commands
#
# Other flags before the -- are passed to sbatch: --partition, --account, --qos, --cpus-per-task, ... The workdir and the
# data must be on a file system that all nodes share; only the first process writes.
set -euo pipefail

mistake() {
  echo "error: $1" >&2
  exit 2
}
nodes=1 gpus=0 per=node name=robust_gan limit=24:00:00 grace=120 dry_run='' others=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  value=${1#*=}
  case $1 in
    --nodes=*) nodes=$value ;;
    --gpus_per_node=*) gpus=$value ;;
    --per=*) per=$value ;;
    --name=*) name=$value ;;
    --time=*) limit=$value ;;
    --grace=*) grace=$value ;;
    --dry_run) dry_run=1 ;;
    -*) others+=("$1") ;;
    *) mistake "unexpected argument '$1': everything is --flag=value, and the command comes after --" ;;
  esac
  shift
done
[ $# -gt 1 ] || mistake "there is no command: bash launch/slurm.sh [FLAGS] -- python launch/train.py ..."
shift
[[ $nodes =~ ^[1-9][0-9]*$ ]] || mistake "--nodes must be at least 1, not '$nodes'"
[[ $gpus =~ ^[0-9]+$ ]] || mistake "--gpus_per_node must be a number, not '$gpus'"
[[ $grace =~ ^[0-9]+$ ]] || mistake "--grace must be a number of seconds, not '$grace'"
[[ $name =~ ^[A-Za-z0-9._-]+$ ]] || mistake "--name must be letters, digits, dots, dashes and underscores, not '$name'"
case $per in
  node) tasks=1 ;;
  gpu)
    [ "$gpus" -gt 0 ] || mistake "--per=gpu needs --gpus_per_node"
    tasks=$gpus
    ;;
  *) mistake "--per must be node or gpu, not '$per'" ;;
esac

# All tasks of a node have access to all its GPUs: JAX uses the GPU of the task's local number, or the GPUs given here.
environment=()
if [ "$per" = node ] && [ "$gpus" -gt 1 ]; then
  environment=(env "JAX_LOCAL_DEVICE_IDS=$(seq -s , 0 $((gpus - 1)))")
fi
step=(srun --kill-on-bad-exit=0 ${environment[@]+"${environment[@]}"} "$@" --distributed)
quoted=$(printf '%q ' "${step[@]}")
batch=(
  sbatch "--job-name=$name" "--nodes=$nodes" "--ntasks-per-node=$tasks" "--time=$limit" "--output=$name-%j.log"
  --open-mode=append --requeue "--signal=TERM@$grace"
)
[ "$gpus" -eq 0 ] || batch+=("--gpus-per-node=$gpus" --gpu-bind=none)
batch+=(${others[@]+"${others[@]}"} "--wrap=${quoted% }")
if [ -n "$dry_run" ]; then
  printf '%q ' "${batch[@]}"
  echo
  exit 0
fi
command -v sbatch > /dev/null || mistake "there is no sbatch here: run this on a login node of a SLURM cluster"
exec "${batch[@]}"
