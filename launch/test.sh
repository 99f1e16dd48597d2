#!/usr/bin/env bash
# Installs like quickstart.sh and runs every test. Arguments go to pytest.
source "$(dirname "${BASH_SOURCE[0]}")/install.sh"
.venv/bin/ruff check .
exec .venv/bin/python -m pytest -n 2 --dist=loadfile "$@"
