#!/usr/bin/env bash
# Runs the tests, and beside them the linter and the type checker, in a virtual environment of their own:
#
#     bash launch/test.sh [--all] [pytest arguments]
#
# Without --all the tests with a marker (pyproject.toml) and the doctests are left out.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/setup_venv.sh test

log=$(mktemp)
trap 'rm -f "$log"' EXIT
bash launch/check.sh > "$log" 2>&1 &
check=$!

doctests=()
for argument in "$@"; do
  if [ "$argument" = --all ]; then
    doctests=(--doctest-modules robust_gan tests)
  fi
done
tests_ended=0 check_ended=0
# A worker takes whole files, so that what a file compiles is compiled once.
"$python" -m pytest -n 2 --dist loadfile ${doctests[@]+"${doctests[@]}"} "$@" || tests_ended=$?
wait "$check" || check_ended=$?
cat "$log"
if [ "$check_ended" -ne 0 ]; then
  echo "launch/check.sh failed" >&2
fi
exit $((tests_ended != 0 ? tests_ended : check_ended))
