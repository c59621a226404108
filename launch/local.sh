#!/usr/bin/env bash
# Runs training as several processes on this machine, each with several CPU devices,
# in the shape of a pod: 4 x 8 is a TPU v3-32.
#
#   launch/local.sh --processes=4 --devices=8 --config=configs/quickstart.py [flags of main ...]
#   launch/local.sh --module=gpt_pjit.evaluate --checkpoint=runs/quickstart [its flags ...]
set -euo pipefail

processes=4
devices=8
module=gpt_pjit.main
arguments=()
for argument in "$@"; do
    case "$argument" in
        --processes=*) processes="${argument#*=}" ;;
        --devices=*) devices="${argument#*=}" ;;
        --module=*) module="${argument#*=}" ;;
        -h | --help)
            sed -n '2,6s/^# \{0,1\}//p' "$0"
            exit 0
            ;;
        *) arguments+=("$argument") ;;
    esac
done

python="${PYTHON:-python}"
port="$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')"
export JAX_PLATFORMS=cpu
export JAX_NUM_CPU_DEVICES="$devices"
export JAX_COORDINATOR_ADDRESS="127.0.0.1:$port"
export JAX_NUM_PROCESSES="$processes"

pids=()
trap 'kill "${pids[@]}" 2>/dev/null || true' EXIT
for ((id = 0; id < processes; id++)); do
    # Only process 0 prints; from the others come errors alone.
    if ((id == 0)); then
        JAX_PROCESS_ID=$id "$python" -m "$module" "${arguments[@]}" &
    else
        JAX_PROCESS_ID=$id "$python" -m "$module" "${arguments[@]}" > /dev/null &
    fi
    pids+=($!)
done

# The first process that fails sets the exit code and ends the others.
for ((left = processes; left > 0; left--)); do
    code=0
    wait -n || code=$?
    if ((code != 0)); then
        exit "$code"
    fi
done
