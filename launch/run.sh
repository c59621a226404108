#!/usr/bin/env bash
# What every host of a pod runs: environment, install, and the trainer with the flags given.
#
#   gcloud compute tpus tpu-vm ssh NAME --worker=all --command="cd gpt_pjit && launch/run.sh --config=configs/580m.py --workdir=gs://..."
#
# MODULE names another command than the trainer, such as gpt_pjit.evaluate.
# EXTRA names the accelerator's extra, tpu or cuda; VENV the virtual environment, made once a host.
set -euo pipefail
cd "$(dirname "$0")/.."

venv="${VENV:-.venv}"
if [[ ! -x "$venv/bin/python" ]]; then
    python3 -m venv "$venv"
fi
"$venv/bin/pip" install --quiet --editable ".[${EXTRA:-tpu}]"
exec "$venv/bin/python" -m "${MODULE:-gpt_pjit.main}" --distributed "$@"
