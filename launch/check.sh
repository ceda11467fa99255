#!/usr/bin/env bash
# Runs the linter and the type checker, half a minute: bash launch/check.sh
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/setup_venv.sh test
"$python" -m ruff check .
"$python" -m ruff format --check .
"$python" -m mypy
