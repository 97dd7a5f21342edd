#!/usr/bin/env bash
# Installs mltune from this checkout into the Python on PATH, everything pinned by hash.
#
#   .github/install.sh            mltune and what it needs
#   .github/install.sh NAME...    these packages of requirements-dev.txt instead
#
# TORCH_INDEX_URL names the index with the CPU builds of torch, which the lock for CPUs needs.
# Without it the lock with the CUDA build is installed: larger, from the ordinary index, and its
# CPU kernels do the same work.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
scratch=$(mktemp -d)
trap 'rm -rf -- "$scratch"' EXIT

# Only a newer pip takes hashes from a constraints file. Its own pin stands in the lock, too.
sed -n '/^pip==/,/[^\\]$/p' requirements-dev.txt >"$scratch/pip.txt"
python -m pip install --quiet --require-hashes -r "$scratch/pip.txt"

if [ $# -gt 0 ]; then
  python -m pip install --require-hashes -c requirements-dev.txt "$@"
  exit
fi

if [ -n "${TORCH_INDEX_URL:-}" ]; then
  export PIP_EXTRA_INDEX_URL="${PIP_EXTRA_INDEX_URL:+$PIP_EXTRA_INDEX_URL }$TORCH_INDEX_URL"
  lock=requirements.txt
else
  echo '::notice::TORCH_INDEX_URL is not set: installing the CUDA build of torch (see docs/ci.md)'
  lock=requirements-gpu.txt
fi
python -m pip install --require-hashes -r "$lock"

# The build backend with what it needs, then this checkout.
python -m pip install --quiet --require-hashes -c requirements-dev.txt hatchling
python -m pip install --no-deps --no-build-isolation .
