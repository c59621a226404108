"""A 350M ALiBi GPT on a mixture of web text and books, on the 16 chips of two TPU v5e-8 slices.

    launch/run.sh --distributed --config=configs/350m.py --workdir=gs://BUCKET/350m  # on each host

Hardware: two slices of v5e-8. Each slice holds the whole state, so only gradients cross the slower
network between them. Within a slice, 4-way data and 2-way tensor parallelism. Tokens: 0.5M a step,
10.5B in all, three of every four from the web.
"""

from gpt_pjit.config import default_config


def get_config():
    c = default_config()
    c.model.n_layers = 24
    c.model.n_heads = 16
    c.model.d_model = 1024
    c.model.d_ff = 4096
    c.model.vocab_size = 50304
    c.model.remat = "selective"
    c.data.sources = (("data/web", 0.75), ("data/books", 0.25))
    c.data.sequence_length = 1024
    c.data.batch_size = 512
    c.optim.steps = 20_000
    c.optim.peak_lr = 4e-4
    c.optim.warmup_steps = 1_000
    c.optim.microbatches = 4
    c.mesh.replica = 2
    c.mesh.data = 4
    c.mesh.tensor = 2
    c.partition.rules = (
        # The vocabulary is split over both axes: the embedding is a seventh of the model.
        (r"embed/embedding", (("tensor", "data"), None)),  # [V, D]
        (r"blocks/attention/qkv/kernel", (None, "data", None, "tensor", None)),  # [L, D, C, H, K]
        (r"blocks/attention/out/kernel", (None, "tensor", None, "data")),  # [L, H, K, D]
        (r"blocks/mlp/up/kernel", (None, "data", "tensor")),  # [L, D, F]
        (r"blocks/mlp/down/kernel", (None, "tensor", "data")),  # [L, F, D]
        (r"blocks/norm_(attention|mlp)/scale", (None, None)),  # [L, D]
        (r"norm_final/scale", (None,)),
    )
    c.eval.every = 500
    c.eval.batches = 50
    c.checkpoint.every = 1_000
    return c
