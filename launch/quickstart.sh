#!/usr/bin/env bash
# The main job in one command: search, train, quantize, evaluate, report. Run again, it continues.
#
#   bash launch/quickstart.sh                    on synthetic speech, made on this machine
#   bash launch/quickstart.sh --data_dir=DIR     on recordings in the Speech Commands layout
#   bash launch/quickstart.sh --dataset=tfds     on TFDS's speech_commands (downloads 2.4 GB)
#
# Any flag of launch/pipeline.py may follow, such as --workdir=DIR or --config=configs/sinc60.py.
source "$(dirname "${BASH_SOURCE[0]}")/install.sh"

flags=("$@")
has() { local flag; for flag in "${flags[@]+"${flags[@]}"}"; do case "$flag" in --"$1"|--"$1"=*) return 0;; esac; done; return 1; }

has config || flags=(--config=configs/sinc60.py:quickstart "${flags[@]+"${flags[@]}"}")
if ! has data_dir && ! has dataset; then
  .venv/bin/python launch/make_corpus.py --out=runs/synthetic_speech
  flags+=(--data_dir=runs/synthetic_speech)
  has workdir || flags+=(--workdir=runs/quickstart)
elif ! has workdir; then
  # each data set has its own run directory
  flags+=("--workdir=runs/quickstart-$(printf '%s\n' "$@" | grep -E '^--(data_dir|test_dir|dataset|data)' | sha256sum | cut -c1-8)")
fi
exec .venv/bin/python launch/pipeline.py "${flags[@]}"
