#!/usr/bin/env bash
# Trains three classifiers and a surrogate on the built-in digits, attacks them, and prints one table, in five minutes.
#
#     bash launch/quickstart.sh [--config.FIELD=VALUE ...]
#
# Writes checkpoints, metrics, tables and plots to runs/quickstart/ (or $QUICKSTART_DIR).
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/setup_venv.sh plot
out=${QUICKSTART_DIR:-runs/quickstart}

train() { # name, method, seed, flags...
  echo "Training $1"
  "$python" launch/train.py --config="configs/digits.py:$2" --workdir="$out/$1" --config.seed="$3" "${@:4}"
}
train standard none 0 "$@"
train pgd pgd 0 "$@"
train adversarial_network generator 0 "$@"
train surrogate none 100 "$@"

echo "Attacking them"
"$python" launch/evaluate.py \
  --checkpoint="$out/standard,$out/pgd,$out/adversarial_network" --surrogates="$out/surrogate" \
  --attacks=clean,fgsm,pgd40,generator --output="$out" --plots=examples
"$python" launch/report.py "$out" --output="$out/report.html" > /dev/null
echo "Report: $out/report.html; plots: $out/examples.png"
