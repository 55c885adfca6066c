#!/usr/bin/env bash
# Plans of the real sizes, one JSON line each: benchmarks/plans.sh [FOLDER].
# About an hour on two cores; finished ones are not repeated.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
out=${1:-plans}
mkdir -p "$out"

plan() {
  local name=$1
  shift
  if [[ -s $out/$name.json ]]; then return; fi
  echo "$name: $*"
  if python -m uae_jax.tools.plan "$@" --programs=train_step,update --json \
    >"$out/$name.txt"; then
    tail -n 1 "$out/$name.txt" >"$out/$name.json"
  fi
}

umm1=--config=configs/umm1.py
janus=(
  --config=configs/umm2.py:janus-pro-7b --config.train.images=64
  --config.mesh.model=4 --config.memory.rollout_images=1
)
plan qwen3b-sd35m-v5e-4x4 $umm1:qwen3b-sd35m --topology=v5e:4x4
plan qwen3b-sd35l-v5e-8x8 $umm1:qwen3b-sd35l --topology=v5e:8x8
plan qwen3b-sd35l-v5p-2x2x4 $umm1:qwen3b-sd35l --topology=v5p:2x2x4
plan uniworld-v5p-4x4x4 $umm1:uniworld --topology=v5p:4x4x4
plan uniworld-v5e-16x16 $umm1:uniworld --topology=v5e:16x16 \
  --config.mesh.model=4
plan uniworld-2-v5e-16x16 $umm1:uniworld --topology=v5e:16x16 --slices=2 \
  --config.mesh.model=4 --config.train.images=128
plan janus-7b-v5e-8x8 "${janus[@]}" --topology=v5e:8x8
plan janus-7b-v6e-8x8 "${janus[@]}" --topology=v6e:8x8
