"""Train a GPT.

python -m gpt_pjit.main --config=configs/quickstart.py [--config.optim.steps=100 ...]
"""

from __future__ import annotations

import sys
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from gpt_pjit.cli import config_source, parse_flags, read_config, report_errors
from gpt_pjit.runtime import start
from gpt_pjit.train import train

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the run lives; default runs/<config name>.")
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Join the other hosts of this pod or job.")


def main(_: list[str]) -> None:
    logging.set_verbosity(logging.WARNING)  # Orbax tells every file it writes
    with report_errors():
        config = read_config(_CONFIG)
        start(config, _DISTRIBUTED.value)
        sys.exit(train(config, Path(_WORKDIR.value or f"runs/{config_source(_CONFIG).stem}")))


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
