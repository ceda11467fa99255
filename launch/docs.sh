#!/usr/bin/env bash
# Builds the documentation into site/. Broken links, pages outside the menu, and undocumented public names are errors.
#
#     bash launch/docs.sh            # then open site/index.html
#     bash launch/docs.sh --serve    # rebuilds after each change
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/setup_venv.sh docs,test
"$python" -m pytest -q tests/packaging/test_public_names.py
export NO_MKDOCS_2_WARNING=1
if [ "${1:-}" = --serve ]; then
  exec "$python" -m mkdocs serve
fi
"$python" -m mkdocs build --strict "$@"
