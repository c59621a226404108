"""GPT-2 small, fine-tuned on your own JSON lines: lower half frozen, documents kept apart.

    gpt_pjit hf import --source=openai-community/gpt2 --out=runs/finetune
    gpt_pjit train --config=configs/finetune.py --workdir=runs/finetune \
        --config.data.text='mine/*.jsonl' --config.data.tokenizer=runs/finetune/tokenizer.json

Each line is an object with the field `text`. One GPU of 16 GB, or a laptop overnight. 32k tokens a
step. The learning rate is two hundred times lower than for training from scratch, so that the model
keeps what it knows.
"""

from gpt_pjit.config import default_config


def get_config():
    c = default_config()
    c.model.n_layers = 12
    c.model.n_heads = 12
    c.model.d_model = 768
    c.model.d_ff = 3072
    c.model.vocab_size = 50257
    c.model.positions = "learned"
    c.model.activation = "gelu_tanh"
    c.model.bias = "all"
    c.model.dropout_residual = 0.1
    c.model.remat = "selective"
    c.data.text = "mine/*.jsonl"
    c.data.text_column = "text"
    c.data.tokenizer = "runs/finetune/tokenizer.json"
    c.data.validation_split = "documents"  # by the hash of each record
    c.data.validation_fraction = 0.02
    c.data.mask_documents = True
    c.data.sequence_length = 1024
    c.data.batch_size = 32
    c.optim.steps = 1_000
    c.optim.peak_lr = 3e-6
    c.optim.warmup_steps = 50
    c.optim.b1 = 0.9
    c.optim.b2 = 0.999
    c.optim.microbatches = 8
    c.optim.decay_rules = ((r".*", 0.0),)
    c.optim.lr_rules = (
        (r"(embed|positions)/.*", 0.0),
        (r"blocks/.*", (0.0,) * 6 + (1.0,) * 6),  # one factor per layer; 0 freezes
        (r"norm_final/.*", 1.0),
    )
    c.eval.every = 100
    c.checkpoint.every = 100
    c.log.every = 5
    c.sample.tokens = 100
    c.sample.temperature = 0.7
    return c
