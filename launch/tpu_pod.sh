#!/usr/bin/env bash
# A TPU slice from the queue to a run, and back: see launch/README.md.
#
#   launch/tpu_pod.sh create | setup | run | logs | stop | delete
#
# Reads NAME, PROJECT, ZONE, TYPE, RUNTIME from the environment; everything
# after `run` goes to uae_jax.main on every host.
set -euo pipefail

: "${NAME:=uae-jax}"
: "${PROJECT:?set PROJECT to the Google Cloud project}"
: "${ZONE:?set ZONE, such as us-west4-a}"
: "${TYPE:=v5litepod-16}"
: "${RUNTIME:=v2-alpha-tpuv5-lite}"
: "${SPOT:=}"    # anything: cheaper, may be taken away; resume by `run`
: "${BUCKET:=}"  # mounted as ~/shared on every host
: "${REPOSITORY:=}"

where=(--project="$PROJECT" --zone="$ZONE")

on_all() {
  gcloud compute tpus tpu-vm ssh "$NAME" "${where[@]}" --worker=all \
    --command="$1"
}

case "${1:-}" in
  create)
    spot=()
    if [[ -n $SPOT ]]; then spot=(--spot); fi
    gcloud compute tpus queued-resources create "$NAME" "${where[@]}" \
      --node-id="$NAME" --accelerator-type="$TYPE" \
      --runtime-version="$RUNTIME" "${spot[@]}"
    until gcloud compute tpus queued-resources describe "$NAME" \
      "${where[@]}" --format='value(state.state)' | tee /dev/stderr \
      | grep -q '^ACTIVE$'; do
      sleep 30
    done
    ;;
  setup)
    : "${REPOSITORY:?set REPOSITORY to the git URL that the hosts clone}"
    on_all "test -d uae_jax || git clone --quiet '$REPOSITORY' uae_jax"
    on_all "cd uae_jax && python3 -m venv ~/venv \
      && ~/venv/bin/pip install --quiet -e '.[tpu]'"
    if [[ -n $BUCKET ]]; then
      on_all "mkdir -p ~/shared && (mountpoint -q ~/shared \
        || gcsfuse --implicit-dirs '$BUCKET' ~/shared)"
    fi
    ;;
  run)
    shift
    arguments=$(printf ' %q' "$@")
    # In tmux, so that a lost connection ends nothing.
    on_all "tmux kill-session -t uae 2>/dev/null; tmux new-session -d -s uae \
      \"cd uae_jax && ~/venv/bin/python -m uae_jax.main$arguments \
      2>&1 | tee -a ~/uae.log\""
    ;;
  logs)
    gcloud compute tpus tpu-vm ssh "$NAME" "${where[@]}" --worker=0 \
      --command='tail -n 50 -F ~/uae.log'
    ;;
  stop)
    # SIGTERM to one host is passed on; all save the same step and end.
    gcloud compute tpus tpu-vm ssh "$NAME" "${where[@]}" --worker=0 \
      --command='pkill -TERM -f "[u]ae_jax.main"'
    ;;
  delete)
    gcloud compute tpus queued-resources delete "$NAME" "${where[@]}" \
      --force --quiet
    ;;
  *)
    echo "usage: $0 create | setup | run ARGUMENTS | logs | stop | delete" >&2
    exit 2
    ;;
esac
