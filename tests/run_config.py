"""The run that tests start, smaller still by flags: a GPT with ALiBi, trained by AdamW.

Of its own, so that `configs/quickstart.py` may change with what learns best.
"""

import sysconfig

from gpt_pjit.config import default_config


def get_config():
    c = default_config()
    c.model.n_layers = 4
    c.model.n_heads = 4
    c.model.d_model = 128
    c.model.d_ff = 512
    c.model.vocab_size = 2048
    c.model.dtype = "float32"
    c.model.scan_layers = False
    c.data.text = f"{sysconfig.get_path('stdlib')}/**/*.py"
    c.data.text_exclude = r".*/(site-packages|test|tests|idle_test|lib2to3)/.*"
    c.data.tokenizer = "bpe:2048"
    c.data.sequence_length = 64
    c.data.batch_size = 32
    c.optim.steps = 800
    c.optim.peak_lr = 4e-3
    c.optim.warmup_steps = 60
    c.eval.every = 400
    c.checkpoint.every = 40
    c.checkpoint.keep = 4
    c.sample.tokens = 200
    c.sample.every = 200
    c.sample.prompts = ("def",)
    return c
