#!/usr/bin/env bash
# Makes .venv with the pinned packages and this project; does nothing if that is done. Sourced by the others.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

want=$(cat requirements.txt setup.cfg pyproject.toml | sha256sum | cut -c1-16)
if [ "$(cat .venv/.installed 2>/dev/null)" != "$want" ]; then
  python=""
  for name in python3 python3.13 python3.12 python3.11; do
    if command -v "$name" >/dev/null && "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
      python=$name
      break
    fi
  done
  if [ -z "$python" ]; then
    echo "kws_jax needs Python 3.11 or newer; on Debian or Ubuntu: apt install python3 python3-venv" >&2
    exit 1
  fi
  echo "Installing into .venv (a minute or two) ..."
  if ! "$python" -m venv --clear .venv; then
    echo "Could not make a virtual environment; on Debian or Ubuntu: apt install python3-venv" >&2
    exit 1
  fi
  # --no-compile: half the time; what is imported is compiled then, most never is
  .venv/bin/python -m pip install --disable-pip-version-check --no-compile -r requirements.txt
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
  echo "$want" > .venv/.installed
fi
