#!/usr/bin/env bash
# The main job in one command: search, train, quantize, evaluate, report. Run again, it continues.
#
#   bash launch/quickstart.sh                    on synthetic speech, made on this machine
#   bash launch/quickstart.sh --data_dir=DIR     on recordings in the Speech Commands layout
#   bash launch/quickstart.sh --dataset=tfds     on TFDS's speech_commands (downloads 2.4 GB)
#
# Any flag of launch/pipeline.py may follow, such as --workdir=DIR or --config=configs/sinc60.py.
caller=$PWD
source "$(dirname "${BASH_SOURCE[0]}")/install.sh"

flags=()
while [ $# -gt 0 ]; do
  case "$1" in
    --*=*) flags+=("$1"); shift ;;
    --*) # --flag VALUE as --flag=VALUE
      if [ $# -gt 1 ] && [ "${2#--}" = "$2" ]; then flags+=("$1=$2"); shift 2; else flags+=("$1"); shift; fi ;;
    *) flags+=("$1"); shift ;;
  esac
done
# folders are given from where the caller stands
for i in "${!flags[@]}"; do
  case "${flags[$i]}" in
    --data_dir=[!/]*|--test_dir=[!/]*|--workdir=[!/]*|--cache_dir=[!/]*|--config.data.extra_unknown_dir=[!/]*)
      flags[$i]="${flags[$i]%%=*}=$caller/${flags[$i]#*=}" ;;
    --config=[!/]*)
      file=${flags[$i]#*=}
      if [ -f "$caller/${file%%:*}" ]; then flags[$i]="--config=$caller/$file"; fi ;;
  esac
done
given() { printf '%s\n' "${flags[@]+"${flags[@]}"}" | grep -E "^--($1)="; }

if ! given workdir >/dev/null; then
  # each data set and each configuration has its own run directory
  about=$(given 'data_dir|test_dir|dataset|config|config\..*' | sort || true)
  flags+=("--workdir=runs/quickstart${about:+-$(printf '%s' "$about" | sha256sum | cut -c1-8)}")
fi
given config >/dev/null || flags+=(--config=configs/sinc60.py:quickstart)
if ! given 'data_dir|dataset' >/dev/null; then
  .venv/bin/python launch/pipeline.py "${flags[@]}" --only_check_args # before the long work
  .venv/bin/python launch/make_corpus.py --out=runs/synthetic_speech
  flags+=(--data_dir=runs/synthetic_speech)
fi
exec .venv/bin/python launch/pipeline.py "${flags[@]}"
