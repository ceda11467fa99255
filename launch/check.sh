#!/usr/bin/env bash
# Runs the linter, the type checker and the check of the layers of imports, half a minute: bash launch/check.sh
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/setup_venv.sh test
"$python" -m ruff check .
"$python" -m ruff format --check .
# The contracts are in setup.cfg.
"$python" -c "from importlinter.cli import lint_imports_command; lint_imports_command()" --no-cache --no-logo
"$python" -m mypy
