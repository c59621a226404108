"""Pythia 160M: GPT-NeoX's block, layer for layer, on the 32 chips of a TPU v4-64.

    launch/tpu_vm.sh run --name=160m --zone=ZONE --type=v4-64 -- --config=configs/pythia_160m.py \
        --workdir=gs://BUCKET/160m --config.data.path=gs://BUCKET/pile

A quarter of each head rotates, attention and MLP read the same input, biases everywhere, and an
untied head. Tokens: GPT-NeoX tokenizer, 2.1M a step, 300B in all, as published. To train on from
one of its checkpoints, first `gpt_pjit hf import --source=EleutherAI/pythia-160m --out=gs://BUCKET/160m`.
"""

from gpt_pjit.config import default_config


def get_config():
    c = default_config()
    c.model.n_layers = 12
    c.model.n_heads = 12
    c.model.d_model = 768
    c.model.d_ff = 3072
    c.model.vocab_size = 50304
    c.model.positions = "rope"
    c.model.rope_fraction = 0.25
    c.model.bias = "all"
    c.model.parallel_residual = True
    c.model.tied = False
    c.model.remat = "selective"
    c.data.path = "data/pile"
    c.data.sequence_length = 2048
    c.data.batch_size = 1024
    c.optim.steps = 143_000
    c.optim.peak_lr = 6e-4
    c.optim.warmup_steps = 1_430
    c.optim.microbatches = 4
    c.eval.every = 1_000
    c.eval.batches = 50
    c.checkpoint.every = 1_000
    return c
