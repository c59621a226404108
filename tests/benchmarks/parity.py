"""The table of docs/checkpoints.md: each family by heads and heads of keys and values.

    HF_HUB_OFFLINE=1 XLA_FLAGS= python -m tests.benchmarks.parity [FAMILY ...]

For each, a random checkpoint in the form of transformers is imported and exported again. Needs the
extras `hf` and `eval`, and ctranslate2.
"""

import os

os.environ["JAX_PLATFORMS"] = "cpu"

import itertools
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers

from gpt_pjit.config import ModelConfig
from gpt_pjit.hf import export, import_model
from gpt_pjit.hf.models import HFModel
from tests.hf import routes
from tests.hf.checkpoints import (
    LEARNED,
    LLAMA,
    LONGEST,
    MODELS,
    NEOX,
    QWEN2,
    QWEN3,
    TRAINED,
    write_checkpoint,
)
from tests.hf.ours import greedy, logits_of

SIZES = {"n_layers": 2, "vocab_size": 257}
FAMILIES = {
    "llama": LLAMA,
    "qwen2": QWEN2,
    "qwen3": QWEN3,
    "gpt_neox": NEOX | {"parallel_residual": True},
    "gpt2": LEARNED | {"activation": "gelu_tanh"},
    "opt": LEARNED | {"activation": "relu"},
    "mpt": {},
}
GROUPED, CTRANSLATE2 = ("llama", "qwen2", "qwen3"), ("llama", "qwen2", "qwen3", "gpt2", "opt")
TEXTS = ["def main(argv):\n\treturn  0\n", " Größe, 你好", "   spaces   and 12345"]
LENGTH, PROMPT, N_NEW = 64, 8, 24


def logits_of_transformers(folder: Path, tokens: np.ndarray) -> np.ndarray:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        return model(torch.tensor(tokens, dtype=torch.int64)).logits.numpy()


def greedy_of_transformers(folder: Path, prompt: np.ndarray) -> np.ndarray:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    rows = torch.tensor(prompt, dtype=torch.int64)
    options = {"max_new_tokens": N_NEW, "do_sample": False, "eos_token_id": None}
    new = model.generate(rows, attention_mask=torch.ones_like(rows), **options)
    return new[:, PROMPT:].numpy()


def row(family: str, heads: int, groups: int, folder: Path) -> tuple[str, ...]:
    width = 32 if heads == 4 else 96
    sizes = SIZES | {"n_heads": heads, "d_model": width, "d_ff": 4 * width, "n_kv_heads": groups}
    length = LONGEST if FAMILIES[family].get("positions") == "learned" else TRAINED
    MODELS["this"] = HFModel(family, ModelConfig(**sizes | FAMILIES[family]), length)
    theirs, run, out = (folder / name for name in ("theirs", "run", "out"))
    write_checkpoint(theirs, "this")
    import_model(str(theirs), run)
    export(run, out, dtype="float32", max_length=LONGEST)
    tokens = np.random.default_rng(1).integers(0, 256, (2, LENGTH), np.int32)
    prompt, ours = tokens[:1, :PROMPT], logits_of(run)
    logits, new = ours(tokens), greedy(ours, tokens[:1, :PROMPT], N_NEW)
    second = "no converter"
    if family in CTRANSLATE2:
        runtime = routes.ctranslate2_runtime(out, folder / "converted")
        text = routes.ctranslate2_greedy(runtime, out, prompt[0], N_NEW)
        second = "same text" if text == new[0].tolist() else "OTHER TEXT"
    same = all(np.array_equal(new, greedy_of_transformers(at, prompt)) for at in (theirs, out))
    return (
        family,
        str(heads),
        str(groups or heads),
        *(
            f"{np.abs(logits - logits_of_transformers(at, tokens)).max():.0e}"
            for at in (theirs, out)
        ),
        "same" if same else "OTHER",
        f"{routes.largest_difference_in_lm_eval(theirs, run, TEXTS):.0e}",
        second,
    )


def main() -> None:
    names = ("class", "heads", "kv", "import", "export", "greedy text", "lm-eval", "CTranslate2")
    print(f"| {' | '.join(names)} |\n|{'---|' * len(names)}")
    for family in sys.argv[1:] or FAMILIES:
        kinds = (1, 2, 0) if family in GROUPED else (0,)
        for heads, groups in itertools.product((4, 6, 12), kinds):
            with tempfile.TemporaryDirectory() as folder:
                print(f"| {' | '.join(row(family, heads, groups, Path(folder)))} |", flush=True)


if __name__ == "__main__":
    main()
