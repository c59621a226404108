"""The 580M run: ALiBi GPT on OpenWebText, 32 cores of a TPU v3-32.

    launch/tpu_vm.sh run --name=580m --zone=ZONE --type=v3-32 -- --config=configs/580m.py \
        --workdir=gs://BUCKET/580m --config.data.path=gs://BUCKET/openwebtext

Hardware: TPU v3-32 (4 hosts, 32 cores of 16 GiB). Tokens: GPT-NeoX tokenizer, 8.24B for training,
0.5M a step, 50.9B in all, which is 6.2 epochs. Expected after averaging the last checkpoints:
WikiText-2 0.9547, text8 1.133, enwik8 1.089 bits per byte; LAMBADA 46.4 % at perplexity 14.08; PIQA
66.8 %.

The TPU compiler estimates 1,569 Mcycles a step, which is 1.67 s at 940 MHz, or 1.70 s with our
estimate of the collectives. The peak is 10.10 of 15.48 GiB a core. Dropout of 0.1 is rounded to
26/256.
"""

from gpt_pjit.config import default_config


def get_config():
    c = default_config()
    c.model.n_layers = 18
    c.model.n_heads = 12
    c.model.d_model = 1536
    c.model.d_ff = 6144
    c.model.vocab_size = 50304  # 50,277 padded to a multiple of 128
    c.model.positions = "alibi"
    c.model.dropout_residual = 0.1
    c.model.dropout_attention = 0.1
    c.model.dropout_embedding = 0.0
    c.model.dtype = "bfloat16"
    c.model.remat = "selective"
    c.data.path = "data/openwebtext"
    c.data.sequence_length = 1024
    c.data.batch_size = 512
    c.optim.steps = 97_000
    c.optim.peak_lr = 2.5e-4
    c.optim.warmup_steps = 2_000
    c.optim.final_lr_fraction = 0.1
    c.optim.b2 = 0.95
    c.optim.weight_decay = 0.1
    c.optim.clip_norm = 1.0
    c.optim.microbatches = 1
    c.partition.layout = "zero"
    c.eval.every = 1_000
    c.eval.batches = 100
    c.checkpoint.every = 1_000
    c.checkpoint.keep = 20  # the last fifth of the run, for averaging
    c.log.depth_every = 1_000
    c.log.patience = 120.0  # a shared disk may stall
    return c
