"""lm-eval's command line, with our model registered.

python -m gpt_pjit.evaluate.lm_eval --model gpt_pjit --model_args checkpoint=DIR --tasks piqa

All flags are lm-eval's, and --distributed: let JAX find the other hosts. Several processes are
joined as for training; JAX_NUM_CPU_DEVICES sets the number of devices on a CPU.
"""

import sys

import jax

from gpt_pjit.commandline import report_errors
from gpt_pjit.core.runtime import ending_together
from gpt_pjit.evaluate.followers import follow
from gpt_pjit.evaluate.harness import require_lm_eval
from gpt_pjit.evaluate.orders import order
from gpt_pjit.trained import start_devices

DISTRIBUTED = "--distributed"


def main() -> None:
    with report_errors():
        require_lm_eval(["this command"])
        start_devices(distributed=DISTRIBUTED in sys.argv)
        sys.argv = [argument for argument in sys.argv if argument != DISTRIBUTED]
        with ending_together():
            if jax.process_index() != 0:
                follow()
                return
            from lm_eval.__main__ import cli_evaluate

            import gpt_pjit.evaluate.model  # noqa: F401  registers the model

            cli_evaluate()
            order("end")


if __name__ == "__main__":
    main()
