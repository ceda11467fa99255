#!/usr/bin/env bash
# Runs the linter, the type checker, the tests and the doctests in a virtual environment of their own:
#
#     bash launch/test.sh [--all] [pytest arguments]
#
# Without --all the slow tests are left out.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/setup_venv.sh test
bash launch/check.sh
"$python" -m pytest -n 2 --doctest-modules robust_gan tests "$@"
