"""Writes reference.npz: what transformers computes of the tiny checkpoints.

    python -m tests.hf.make_reference

Wants the extra `hf`. The tests compare with these numbers where torch is not installed.
"""

import tempfile
from pathlib import Path

import numpy as np

from tests.hf.checkpoints import MODELS, N_NEW, REFERENCE, SOME, some_tokens, write_checkpoint


def logits_and_greedy(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Logits, float32 [B, T, V], and the ids that greedy decoding gives after the first 8."""
    import torch
    from transformers import AutoModelForCausalLM

    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys")), report
    tokens = torch.tensor(some_tokens(), dtype=torch.int64)
    with torch.no_grad():
        logits = model(tokens).logits.numpy()
        new = model.generate(
            tokens[:, :8],
            attention_mask=torch.ones_like(tokens[:, :8]),
            max_new_tokens=N_NEW,
            do_sample=False,
            eos_token_id=None,
        )
    return logits, new[:, 8:].numpy().astype(np.int32)


def main() -> None:
    arrays = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in MODELS:
            logits, greedy = logits_and_greedy(write_checkpoint(Path(scratch) / name, name))
            arrays[f"{name}.logits"] = logits[:, SOME]
            arrays[f"{name}.greedy"] = greedy
            print(f"{name}: logits from {logits.min():.2f} to {logits.max():.2f}")
    np.savez_compressed(REFERENCE, **arrays)


if __name__ == "__main__":
    main()
