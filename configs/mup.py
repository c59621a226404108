"""One set of rates for every width: CompleteP (Dey et al., 2025), from a model 128 wide.

    gpt_pjit train --config=configs/mup.py:1024 --config.data.path=DATASET
    gpt_pjit coordinates --config=configs/mup.py

The number is the width. Tune learning rate, decay and warm-up at the first width, a matter of
minutes a run on one chip; they hold at all others, and `gpt_pjit coordinates` shows that
activations change alike at each. Change the width here, not by --config.model.d_model: the tables
follow from it.
"""

from gpt_pjit.config import default_config
from gpt_pjit.core.scaling import scale_from

TUNED = {"width": 128, "layers": 4, "head_size": 32}


def get_config(width="128"):
    c = default_config()
    c.model.d_model = int(width)
    c.model.n_layers = 4
    c.model.n_heads = max(4, c.model.d_model // 128)  # heads of 128 from a width of 512 on
    c.model.d_ff = 4 * c.model.d_model
    c.model.vocab_size = 50304
    c.model.positions = "rope"
    c.model.norm = "rms"
    c.model.tied = False
    c.model.remat = "selective"
    c.data.path = "data/openwebtext"
    c.data.sequence_length = 1024
    c.data.batch_size = 256
    c.optim.steps = 10_000
    c.optim.peak_lr = 4e-3
    c.optim.warmup_steps = 500
    c.eval.every = 500
    c.eval.batches = 20
    c.checkpoint.every = 1_000
    scale_from(c, **TUNED)
    return c
