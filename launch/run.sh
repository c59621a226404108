#!/usr/bin/env bash
# Runs on each host: installs what launch/requirements.lock names, unless that is done, and trains.
#
#   launch/run.sh --config=configs/124m.py --workdir=runs/124m                       # one machine
#   launch/run.sh --distributed --config=configs/580m.py --workdir=gs://BUCKET/580m  # each of many
#
# --install only installs; --dry_run prints the commands. All other flags are the trainer's.
# MODULE is another command to run in place of training, such as gpt_pjit.evaluate.
# EXTRA is the accelerator's extra, tpu (default) or cuda. VENV is the virtual environment.
set -euo pipefail
cd "$(dirname "$0")/.."

flags=()
install_only=
dry_run=
for flag in "$@"; do
    case "$flag" in
        --install) install_only=1 ;;
        --dry_run) dry_run=1 ;;
        -h | --help)
            sed -n '2,/^[^#]/{s/^# //p;s/^#$//p}' launch/run.sh
            exit 0
            ;;
        *) flags+=("$flag") ;;
    esac
done

call() {
    if [[ -n "$dry_run" ]]; then
        printf '%q ' "$@" && echo
    else
        "$@"
    fi
}

venv="${VENV:-.venv}"
extra="${EXTRA:-tpu}"
wanted="$(cat launch/requirements.lock pyproject.toml | sha256sum) $extra $PWD"
if [[ "$(cat "$venv/installed" 2> /dev/null)" != "$wanted" ]]; then
    if [[ ! -x "$venv/bin/python" ]]; then
        if python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
            call python3 -m venv "$venv"
        else # Ubuntu 22.04, the system of TPU VMs, has Python 3.10
            call python3 -m pip install --quiet --user uv
            call python3 -m uv venv --quiet --seed --python=3.12 "$venv"
        fi
    fi
    call "$venv/bin/python" -m pip install --quiet --require-hashes --requirement launch/requirements.lock
    call "$venv/bin/python" -m pip install --quiet --editable ".[$extra]"
    [[ -n "$dry_run" ]] || echo "$wanted" > "$venv/installed"
fi
[[ -z "$install_only" ]] || exit 0
call exec "$venv/bin/python" -m "${MODULE:-gpt_pjit.main}" "${flags[@]}"
