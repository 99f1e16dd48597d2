#!/usr/bin/env bash
# Installs like quickstart.sh and runs every test. Arguments go to pytest.
source "$(dirname "${BASH_SOURCE[0]}")/install.sh"
.venv/bin/ruff check .
# files in their order, or the longest tests, which are alone in theirs, come last
exec .venv/bin/python -m pytest -n 2 --dist=loadfile --no-loadscope-reorder "$@"
