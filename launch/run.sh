#!/usr/bin/env bash
# Runs on every host of a pod: makes the environment, installs, and trains with the given flags.
#
#   gcloud compute tpus tpu-vm ssh NAME --worker=all --command="cd gpt_pjit && launch/run.sh --config=configs/580m.py --workdir=/shared/580m"
#
# MODULE is another command to run in place of training, such as gpt_pjit.evaluate.
# EXTRA is the accelerator's extra, tpu or cuda. VENV is the virtual environment, made once per host.
set -euo pipefail
cd "$(dirname "$0")/.."

venv="${VENV:-.venv}"
if [[ ! -x "$venv/bin/python" ]]; then
    python3 -m venv "$venv"
fi
"$venv/bin/pip" install --quiet --editable ".[${EXTRA:-tpu}]"
exec "$venv/bin/python" -m "${MODULE:-gpt_pjit.main}" --distributed "$@"
