#!/usr/bin/env bash
# Looks the installed dependencies up in the databases of known vulnerabilities: bash launch/audit.sh
# Where these cannot be reached it says so and ends with 0: nothing is claimed then.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/setup_venv.sh test
# An old release with known vulnerabilities: an index that has none for it has none for anything.
if ! "$python" - << 'PROBE' 2> /dev/null || ! "$python" -m pip install --quiet pip-audit 2> /dev/null; then
import json, urllib.request

assert json.load(urllib.request.urlopen("https://pypi.org/pypi/pip/9.0.0/json", timeout=10))["vulnerabilities"]
PROBE
  echo "not audited: the database of pypi.org or pip-audit cannot be reached"
  exit 0
fi
"$python" -m pip_audit --skip-editable
