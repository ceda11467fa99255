#!/usr/bin/env bash
# All benchmarks of one GPU, the most important first, within --budget seconds (560).
#
#     bash benchmarks/gpu.sh [--budget SECONDS] [--rows step64,step512,...] [--output FILE] [--smoke]
#
# Needs jax with its GPU plugin, flax, optax, numpy and torch; nothing is fetched and nothing installed. Rows are printed
# and written to the JSON file ($OUT/gpu.json, or ./gpu.json) as they come; --smoke shows on any machine that all is there.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
# Several processes share the GPU.
export XLA_PYTHON_CLIENT_PREALLOCATE=false
# Kernels are still chosen by their time; only the checks of the candidates' results are left out.
export XLA_FLAGS="${XLA_FLAGS:---xla_gpu_autotune_level=2}"
# What was compiled is found again by a second call on the same machine.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-${TMPDIR:-/tmp}/robust_gan_benchmarks}"
exec "${PYTHON:-python3}" benchmarks/gpu.py --output "${OUT:-.}/gpu.json" "$@"
