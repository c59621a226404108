"""A first run: a small Qwen3, by Muon, on the source of Python's own standard library.

    gpt_pjit train --config=configs/quickstart.py

Needs only a CPU. Tokens: a byte-level BPE of 2,048 ids, trained on the same text by the first run.
"""

import sysconfig

from gpt_pjit.config import default_config


def get_config():
    c = default_config()
    c.model.n_layers = 4
    c.model.n_heads = 4
    c.model.d_model = 128
    c.model.d_ff = 344
    c.model.vocab_size = 2048
    c.model.positions = "rope"
    c.model.norm = "rms"
    c.model.qk_norm = True
    c.model.activation = "swiglu"
    c.model.dtype = "float32"  # faster than bfloat16 on CPUs
    c.model.scan_layers = False
    c.data.text = f"{sysconfig.get_path('stdlib')}/**/*.py"
    c.data.text_exclude = r".*/(site-packages|test|tests|idle_test|lib2to3)/.*"
    c.data.tokenizer = "bpe:2048"
    c.data.sequence_length = 64
    c.data.batch_size = 32  # also divides over the 32 devices of launch/local.sh
    c.optim.steps = 720
    c.optim.rules = ((r"blocks/.*/kernel", ("muon", 0.02)), (r".*", "adamw"))
    c.optim.peak_lr = 4e-3
    c.optim.warmup_steps = 60
    c.eval.every = 360
    c.checkpoint.every = 40
    c.checkpoint.keep = 4  # the last sixth of the run, for averaging
    c.sample.tokens = 200
    c.sample.every = 180
    c.sample.prompts = ("def",)  # no space after it: the tokens of names begin with one
    return c
