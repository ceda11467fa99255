# shellcheck shell=bash
# Sourced by the other scripts: creates .venv, installs robust_gan with the extras in $1, sets $python. With
# ROBUST_GAN_PYTHON that interpreter is used, and nothing is installed.

if [ -n "${ROBUST_GAN_PYTHON:-}" ]; then
  python=$ROBUST_GAN_PYTHON
else
  python=.venv/bin/python
  if ! [ -x "$python" ]; then
    base=
    for candidate in python3.12 python3.11 python3.13 python3; do
      if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        base=$candidate
        break
      fi
    done
    if [ -z "$base" ]; then
      echo "error: Python 3.11 or newer with the venv module is needed: install it (on Debian python3-venv too)" >&2
      exit 2
    fi
    echo "Making .venv with $("$base" --version)"
    "$base" -m venv .venv
  fi
  # The stamp depends on setup.cfg, so that pip runs again only after a change.
  stamp=.venv/installed-$1-$(cksum < setup.cfg | cut -d ' ' -f 1)
  if ! [ -e "$stamp" ]; then
    echo "Installing robust_gan[$1] into .venv"
    "$python" -m pip install --quiet --disable-pip-version-check -e ".[$1]"
    touch "$stamp"
  fi
fi
