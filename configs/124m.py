"""GPT-2 small, layer for layer (learned positions, tanh GELU, biases), on one GPU of 80 GB.

    gpt_pjit train --config=configs/124m.py --config.data.path=DATASET

Tokens: 0.5M a step, 9.8B in all. The dataset brings its tokenizer, GPT-2's or GPT-NeoX's.
"""

from gpt_pjit.config import default_config


def get_config():
    c = default_config()
    c.model.n_layers = 12
    c.model.n_heads = 12
    c.model.d_model = 768
    c.model.d_ff = 3072
    c.model.vocab_size = 50304
    c.model.positions = "learned"
    c.model.activation = "gelu_tanh"
    c.model.bias = "all"
    c.model.remat = "selective"
    c.data.path = "data/openwebtext"
    c.data.sequence_length = 1024
    c.data.batch_size = 480
    c.optim.steps = 20_000
    c.optim.peak_lr = 6e-4
    c.optim.warmup_steps = 700
    c.optim.microbatches = 30
    c.eval.every = 500
    c.eval.batches = 50
    c.checkpoint.every = 1_000
    return c
