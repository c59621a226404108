#!/usr/bin/env bash
# Runs training as several processes on this machine, each with several CPU devices,
# in the shape of a pod: 4 x 8 is a TPU v3-32.
#
#   launch/local.sh --processes=4 --devices=8 --config=configs/quickstart.py [flags of `gpt_pjit train` ...]
#   launch/local.sh --topology=v5e-16 --config=configs/quickstart.py  # devices in that pod's order
#   launch/local.sh --module=gpt_pjit.evaluate --checkpoint=runs/quickstart [its flags ...]
#   launch/local.sh --dry_run ...  # prints the commands
#
# The first process that fails sets the exit code. Signals are passed on; processes still alive after
# GRACE seconds (default 30) are killed. None outlives this script, even if the script is killed.
set -euo pipefail

processes=4
devices=8
topology=
module=gpt_pjit.main
dry_run=
arguments=()
for argument in "$@"; do
    case "$argument" in
        --processes=*) processes="${argument#*=}" ;;
        --devices=*) devices="${argument#*=}" ;;
        --topology=*) topology="${argument#*=}" ;;
        --module=*) module="${argument#*=}" ;;
        --dry_run) dry_run=1 ;;
        -h | --help)
            sed -n '2,/^[^#]/{s/^# //p;s/^#$//p}' "$0"
            exit 0
            ;;
        *) arguments+=("$argument") ;;
    esac
done

pids=()
end() { # passes the signal on, waits, kills
    trap - EXIT INT TERM HUP
    kill -s "$1" "${pids[@]}" 2> /dev/null || true
    for ((waited = 0; waited < 10 * ${GRACE:-30}; waited++)); do
        kill -0 "${pids[@]}" 2> /dev/null || break
        sleep 0.1
    done
    kill -s KILL "${pids[@]}" 2> /dev/null || true
    wait "${pids[@]}" 2> /dev/null || true
    [[ -z "${folder:-}" ]] || rm -r "$folder"
}
trap 'end TERM' EXIT
trap 'end INT; exit 130' INT
trap 'end TERM; exit 143' TERM
trap 'end HUP; exit 129' HUP

python="${PYTHON:-python}"
export JAX_PLATFORMS=cpu
if [[ -n "$topology" ]]; then
    folder="$(mktemp -d)"
    export GPT_PJIT_VIRTUAL_POD="$folder/pod.json"
    sizes="$("$python" -m gpt_pjit.plan pod --topology="$topology" --out="$folder/pod.json")"
    read -r processes devices <<< "$sizes"
fi
port="$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')"
export JAX_NUM_CPU_DEVICES="$devices"
export JAX_COORDINATOR_ADDRESS="127.0.0.1:$port"
export JAX_NUM_PROCESSES="$processes"

# Each process has its own session: Ctrl-C reaches it once, through `end`. With `setpriv`, the kernel
# ends it when this script is killed.
run=(env --default-signal=INT setsid setpriv --pdeathsig KILL)
run+=("$python" -m "$module" "${arguments[@]}")
for ((id = 0; id < processes; id++)); do
    if [[ -n "$dry_run" ]]; then
        printf '%q ' JAX_PROCESS_ID=$id "${run[@]}" && echo
        continue
    fi
    if ((id == 0)); then # only its output is shown; the others show errors alone
        JAX_PROCESS_ID=$id "${run[@]}" &
    else
        JAX_PROCESS_ID=$id "${run[@]}" > /dev/null &
    fi
    pids+=($!)
done

for ((left = ${#pids[@]}; left > 0; left--)); do
    code=0
    wait -n || code=$?
    if ((code != 0)); then
        exit "$code"
    fi
done
