"""A 1.1B ALiBi GPT with sharded weights, on the 32 chips of a TPU v4-64.

    launch/tpu_vm.sh run --name=1b1 --zone=ZONE --type=v4-64 -- --config=configs/1b1.py \
        --workdir=gs://BUCKET/1b1 --config.data.path=gs://BUCKET/openwebtext

Hardware: TPU v4-64 (8 hosts, 32 chips of 32 GiB). Tokens: 0.5M a step, 50.3B in all.
"""

from gpt_pjit.config import default_config


def get_config():
    c = default_config()
    c.model.n_layers = 20
    c.model.n_heads = 16
    c.model.d_model = 2048
    c.model.d_ff = 8192
    c.model.vocab_size = 50304
    c.model.remat = "selective"
    c.data.path = "data/openwebtext"
    c.data.sequence_length = 1024
    c.data.batch_size = 512
    c.optim.steps = 96_000
    c.optim.peak_lr = 2e-4
    c.optim.warmup_steps = 2_000
    c.partition.layout = "fsdp"
    c.eval.every = 1_000
    c.eval.batches = 100
    c.checkpoint.every = 1_000
    c.checkpoint.keep = 20
    c.log.depth_every = 1_000
    c.log.patience = 120.0  # a shared disk may stall
    return c
