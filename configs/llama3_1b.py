"""Llama 3.2 1B, trained on with your own text, on the 16 chips of a TPU v5e-16.

    gpt_pjit hf import --source=meta-llama/Llama-3.2-1B --out=gs://BUCKET/llama3
    launch/tpu_vm.sh run --name=llama3 --zone=ZONE --type=v5e-16 -- --config=configs/llama3_1b.py \
        --workdir=gs://BUCKET/llama3 --config.data.path=gs://BUCKET/mine_llama3

The dataset is tokenised with the tokenizer.json of that workdir. Tokens: 0.5M a step, 2.1B in all.
`rope_scaling` is part of the published model: it slows the lowest frequencies for long contexts.
"""

from gpt_pjit.config import default_config


def get_config():
    c = default_config()
    c.model.n_layers = 16
    c.model.n_heads = 32
    c.model.n_kv_heads = 8
    c.model.d_model = 2048
    c.model.d_ff = 8192
    c.model.vocab_size = 128256
    c.model.positions = "rope"
    c.model.rope_theta = 500_000.0
    c.model.rope_scaling = (32.0, 1.0, 4.0, 8192)
    c.model.norm = "rms"
    c.model.activation = "swiglu"
    c.model.remat = "full"
    c.data.path = "data/mine_llama3"
    c.data.sequence_length = 4096
    c.data.batch_size = 128
    c.data.mask_documents = True
    c.optim.steps = 4_000
    c.optim.peak_lr = 2e-5
    c.optim.warmup_steps = 200
    c.optim.microbatches = 2
    c.partition.layout = "fsdp"
    c.eval.every = 500
    c.eval.batches = 20
    c.checkpoint.every = 500
    return c
