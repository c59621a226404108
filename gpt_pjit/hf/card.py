"""The model card: what the model is, how to use it, and its results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gpt_pjit.core.tokens import Tokenizer
from gpt_pjit.evaluate import ModelResults, results_table
from gpt_pjit.hf.configs import CLASSES, Form

USE = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # that of this file, or its name on the hub
model = AutoModelForCausalLM.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
# In training each text came after this token.
inputs = tokenizer(tokenizer.eos_token + "Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=100)[0]))
```"""


def model_card(
    form: Form,
    tokenizer: Tokenizer,
    *,
    name: str,
    history: str,
    n_params: int,
    max_length: int,
    results: ModelResults | None,
) -> str:
    """README.md of an export; `history` says in a sentence where the weights come from."""
    c = form.model
    positions = "ALiBi positions" if c.positions == "alibi" else "learned positions"
    reach = (
        f"Trained on contexts of {form.sequence_length:,} tokens; this export takes up to "
        f"{max_length:,} (`{'max_seq_len' if form.family == 'mpt' else 'n_positions'}`)."
    )
    padding = c.vocab_size - tokenizer.vocab_size
    vocabulary = f"The vocabulary is that of {tokenizer.name}, {tokenizer.vocab_size:,} tokens"
    if padding > 0:
        vocabulary += f", and {padding:,} rows of padding that no text was ever trained to give"
    lines = [
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\n---\n",
        f"# {name}\n",
        f"A GPT of {n_params:,} parameters: {c.n_layers} layers, {c.n_heads} heads, width "
        f"{c.d_model:,}, {positions}, as `{CLASSES[form.family]}`. {history}\n",
        f"{reach} {vocabulary}; each document ended with id {tokenizer.eot_id}.\n",
        USE,
    ]
    if results:
        lines += ["\n## Results\n", results_table(results)]
    return "\n".join(lines) + "\n"


def history(step: int, tokens: int, source: dict[str, Any] | None) -> str:
    """Where the weights of `step` come from; `source` is that of the workdir, if it has one."""
    trained = f"Trained with gpt_pjit, {step:,} steps, {tokens:,} tokens"
    if source is None:
        return f"{trained}."
    if source["kind"] == "average" and step == source["steps"][-1]:
        before = source.get("source")
        begun = f", beginning with {_beginning(before)}" if before else ""
        return f"{trained}{begun}; {_mean_of(source)}."
    begun = _beginning(source)
    return f"{trained}, beginning with {begun}." if step else f"Holds {begun}."


def _beginning(source: dict[str, Any]) -> str:
    """What weights were made of, and what that began with in its turn."""
    if source["kind"] == "average":
        made = _mean_of(source)
    else:
        verb = {"grow": "grown", "import": "imported"}[source["kind"]]
        made = f"weights {verb} from {_origin(source)}"
    before = source.get("source")
    return f"{made}, which began with {_beginning(before)}" if before else made


def _origin(source: dict[str, Any]) -> str:
    """A name on the hub and its commit, or of a folder the name, without those above it."""
    if commit := source.get("revision"):
        return f"{source['from']} at {commit}"
    return Path(source["from"]).name


def _mean_of(source: dict[str, Any]) -> str:
    steps = ", ".join(f"{averaged:,}" for averaged in source["steps"])
    return f"the mean of the checkpoints of steps {steps}"
