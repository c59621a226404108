"""nanochat's model of depth 24, on the eight chips of a TPU v6e-8.

    gpt_pjit train --config=configs/d24.py --config.data.path=DATASET

Rotary positions, norms without gains, also of queries and keys, squared ReLU, an untied head,
logits within +-15, and three layers with half the context to one with all of it. Left out: the norm
after the embedding, the value embeddings and the learned residual scales of its later versions.
Muon trains the matrices of the layers, AdamW embedding and head. Left out: the schedules of Muon's
momentum and weight decay.
Tokens: 0.5M a step, 8.4B in all. The published port to JAX takes 1.43 s a step here, 24 % MFU.

CORE, nanochat's measure, is scored every 2,000 steps on 500 items of each task, whose files are in
`eval_bundle`; --config.eval.tasks='()' leaves it out.

The TPU compiler estimates 1,222 Mcycles a step, the attention kernel by a roofline: 0.71 s with our
estimate of the collectives, 50 % MFU. Bounded by the kernel's instructions it is 0.93 s. The peak
is 24.1 of 31.25 GiB a chip. Layers are not scanned, which takes minutes more to compile.
"""

from gpt_pjit.config import default_config


def get_config():
    c = default_config()
    c.model.n_layers = 24
    c.model.n_heads = 12
    c.model.d_model = 1536
    c.model.d_ff = 6144
    c.model.vocab_size = 32768
    c.model.positions = "rope"
    c.model.rope_theta = 100_000.0
    c.model.windows = (1024, 1024, 1024, 0)
    c.model.norm = "rms"
    c.model.norm_gain = False
    c.model.norm_epsilon = 1e-6
    c.model.qk_norm = True
    c.model.activation = "relu2"
    c.model.tied = False
    c.model.logit_softcap = 15.0
    c.model.remat = "selective"
    c.model.scan_layers = False  # nothing is stacked: a faster step for a longer compile
    c.data.path = "data/fineweb_edu"
    c.data.sequence_length = 2048
    c.data.batch_size = 256
    c.optim.steps = 16_000
    adamw = (c.model.d_model / 768) ** -0.5  # its rates were tuned at a width of 768
    c.optim.peak_lr = 0.02
    c.optim.rules = (
        (r"blocks/.*", "muon"),
        (r"embed/embedding", ("adamw", 0.3 * adamw)),
        (r"head/kernel", ("adamw", 0.004 * adamw)),
    )
    c.optim.b1 = 0.8
    c.optim.weight_decay = 0.0
    c.optim.schedule = "wsd"
    c.optim.warmup_steps = 40
    c.optim.decay_steps = 10_400  # nanochat's warmdown ratio: 0.65
    c.optim.final_lr_fraction = 0.05
    c.optim.microbatches = 2
    c.eval.every = 500
    c.eval.batches = 20
    c.eval.tasks = ("core",)
    c.eval.tasks_every = 2_000
    c.eval.tasks_limit = 500
    c.eval.tasks_data_dir = "eval_bundle"
    c.checkpoint.every = 1_000
    return c
