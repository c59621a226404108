"""A Llama of 150M parameters, on one GPU of 80 GB or the four chips of a TPU v5e-4.

    gpt_pjit train --config=configs/llama_150m.py --config.data.path=DATASET

Rotary positions, RMS norms, SwiGLU, three heads to each head of keys and values, an untied head: a
`LlamaForCausalLM` once exported. Tokens: 0.5M a step, 3.1B in all, which is 20 a parameter.

On v5e-4 the TPU compiler estimates 2,053 Mcycles a step, the attention kernel by a lower bound:
1.37 s with our estimate of transfers, 44 % MFU. The peak is 6.2 of 15.75 GiB a chip. On one H100
the compiled step takes 2.21 s at least, 22 % MFU, 54 % of it in attention, which is plain there;
the peak is 27.6 of the 72.8 GiB that a run takes.
"""

from gpt_pjit.config import default_config


def get_config():
    c = default_config()
    c.model.n_layers = 12
    c.model.n_heads = 12
    c.model.n_kv_heads = 4
    c.model.d_model = 768
    c.model.d_ff = 2048
    c.model.vocab_size = 50304
    c.model.positions = "rope"
    c.model.norm = "rms"
    c.model.activation = "swiglu"
    c.model.tied = False
    c.model.remat = "selective"
    c.data.path = "data/openwebtext"
    c.data.sequence_length = 2048
    c.data.batch_size = 256
    c.optim.steps = 6_000
    c.optim.peak_lr = 1e-3
    c.optim.warmup_steps = 300
    c.optim.z_loss = 1e-4
    c.optim.microbatches = 8
    c.eval.every = 500
    c.eval.batches = 20
    c.checkpoint.every = 500
    return c
