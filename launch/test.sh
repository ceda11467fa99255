#!/usr/bin/env bash
# Runs the tests, doctests and the linter in a virtual environment of their own: bash launch/test.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/setup_venv.sh test
"$python" -m ruff check .
"$python" -m ruff format --check .
"$python" -m pytest -n 2 --doctest-modules robust_gan tests "$@"
