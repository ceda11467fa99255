#!/usr/bin/env bash
# Runs the tests and says how much of the package they run, lines and branches, processes of launchers included:
#
#     bash launch/coverage.sh [pytest arguments]
#
# Ends with 2 below 90 %.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/setup_venv.sh test
"$python" -m coverage erase
"$python" -m coverage run -m pytest -n 2 --dist loadfile --doctest-modules robust_gan tests --all "$@"
"$python" -m coverage combine --quiet
"$python" -m coverage report
