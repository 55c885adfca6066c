#!/usr/bin/env bash
# Plans of the real sizes, one JSON line each: benchmarks/plans.sh [FOLDER].
# About an hour on two cores; finished ones are not repeated. What they say
# as a table: python benchmarks/plans_table.py [FOLDER].
set -uo pipefail
cd "$(dirname "$0")/.." || exit
out=${1:-plans}
mkdir -p "$out"

plan() {
  local name=$1
  shift
  if [[ -s $out/$name.json ]]; then return; fi
  echo "$name: $*"
  if python -m uae_jax.tools.plan "$@" --json >"$out/$name.txt"; then
    tail -n 1 "$out/$name.txt" >"$out/$name.json"
  fi
}

both=--programs=train_step,update
medium=--config=configs/umm1.py:qwen3b-sd35m
large=--config=configs/umm1.py:qwen3b-sd35l
uniworld=--config=configs/umm1.py:uniworld
janus=(
  --config=configs/umm2.py:janus-pro-7b --config.train.images=64
  --config.mesh.model=4
)
plan qwen3b-sd35m-v5e-4x4 $medium --topology=v5e:4x4 $both
plan qwen3b-sd35l-v5e-8x8 $large --topology=v5e:8x8 $both
plan qwen3b-sd35l-v5p-2x2x4 $large --topology=v5p:2x2x4 $both
plan uniworld-v5p-4x4x4 $uniworld --topology=v5p:4x4x4 $both
plan uniworld-v5e-16x16 $uniworld --topology=v5e:16x16 \
  --config.mesh.model=4 $both
plan uniworld-2-v5e-16x16 $uniworld --topology=v5e:16x16 --slices=2 \
  --config.mesh.model=4 --config.train.images=128 $both
plan janus-7b-v5e-8x8 "${janus[@]}" --topology=v5e:8x8 $both \
  --config.memory.rollout_images=2
plan janus-7b-v6e-8x8 "${janus[@]}" --topology=v6e:8x8 $both

# The same work per chip on more of them.
plan weak-v5e-8x8 $medium --topology=v5e:8x8 --programs=train_step \
  --config.train.images=256
plan weak-v5e-16x16 $medium --topology=v5e:16x16 --programs=train_step \
  --config.train.images=1024
