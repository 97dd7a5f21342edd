#!/usr/bin/env bash
# Proves that the training of this project repeats, bit for bit: hands its arguments to
# `mltune repro-check`, with recipe.yaml unless they name a recipe or a command.
#
#   ./run_repro.sh
#   ./run_repro.sh --runs 3 --against golden.json
#   ./run_repro.sh -- python other_training.py
set -euo pipefail

if ! command -v mltune >/dev/null; then
  echo 'run_repro.sh: mltune is not installed, or not on PATH; install it, or activate its environment' >&2
  exit 125
fi
folder=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
for argument in "$@"; do
  case $argument in
    --config | --config=* | --) exec mltune repro-check "$@" ;;
  esac
done
exec mltune repro-check --config "$folder/recipe.yaml" "$@"
