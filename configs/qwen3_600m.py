"""Qwen3 0.6B, layer for layer, from scratch or from its weights, on the 16 chips of a TPU v5e-16.

    launch/tpu_vm.sh run --name=qwen3 --zone=ZONE --type=v5e-16 -- --config=configs/qwen3_600m.py \
        --workdir=gs://BUCKET/qwen3 --config.data.path=gs://BUCKET/fineweb_edu_qwen

Heads of 128, wider together than the model; norms of queries and keys; two heads to each head of
keys and values. The vocabulary, a quarter of the parameters, is that of Qwen's tokenizer. Tokens:
0.5M a step, 12.6B in all. To train on from the published weights, first
`gpt_pjit hf import --source=Qwen/Qwen3-0.6B-Base --out=gs://BUCKET/qwen3`, with a learning rate ten
times lower.
"""

from gpt_pjit.config import default_config


def get_config():
    c = default_config()
    c.model.n_layers = 28
    c.model.n_heads = 16
    c.model.n_kv_heads = 8
    c.model.head_size = 128
    c.model.d_model = 1024
    c.model.d_ff = 3072
    c.model.vocab_size = 151936
    c.model.positions = "rope"
    c.model.rope_theta = 1_000_000.0
    c.model.norm = "rms"
    c.model.norm_epsilon = 1e-6
    c.model.qk_norm = True
    c.model.activation = "swiglu"
    c.model.remat = "full"
    c.data.path = "data/fineweb_edu_qwen"
    c.data.sequence_length = 2048
    c.data.batch_size = 256
    c.data.mask_documents = True
    c.optim.steps = 24_000
    c.optim.peak_lr = 1e-3
    c.optim.warmup_steps = 1_000
    c.optim.microbatches = 4
    c.eval.every = 1_000
    c.eval.batches = 50
    c.checkpoint.every = 1_000
    return c
