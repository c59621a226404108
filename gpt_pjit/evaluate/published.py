"""Results of other models as their citations state them; what one does not state is absent.

None of these were computed here. Accuracies are fractions.
"""

from __future__ import annotations

from gpt_pjit.evaluate.results import ModelResults

RUN_LOG = (
    "training log of the 580M run, github.com/fattorib/ZeRO-transformer logs/580.md at commit "
    "8c18a534 (HellaSwag at 333ee149); GPT-2's LAMBADA and PIQA there are from "
    "github.com/EleutherAI/gpt-neo"
)
GPT2_PAPER = (
    "Radford et al. 2019, Language Models are Unsupervised Multitask Learners, table 3: its own "
    "detokenisers and its own form of LAMBADA, so not what lm-eval computes"
)
COLUMNS = (
    ("wikitext2", "bits_per_byte"),
    ("enwik8", "bits_per_byte"),
    ("text8", "bits_per_byte"),
    ("lambada_openai", "acc"),
    ("lambada_openai", "perplexity"),
    ("piqa", "acc"),
    ("hellaswag", "acc"),
)


def _model(name: str, citation: str, *values: float | None) -> ModelResults:
    tasks: dict[str, dict[str, float]] = {}
    for (task, metric), value in zip(COLUMNS, values, strict=True):
        if value is not None:
            tasks.setdefault(task, {})[metric] = value
    return ModelResults(name, tasks, citation)


PUBLISHED = (
    _model("GPT2-Medium", RUN_LOG, 1.0003, None, 1.1024, 0.430, 18.26, 0.676, 0.3331),
    _model("GPT-580M", RUN_LOG, 0.9547, 1.089, 1.133, 0.464, 14.08, 0.668, 0.3333),
    _model("GPT2-Large", RUN_LOG, 0.9578, None, 1.0543, 0.476, 12.97, 0.703, 0.3640),
    _model("GPT2-Medium (paper)", GPT2_PAPER, None, 1.01, 1.06, 0.5548, 15.60, None, None),
    _model("GPT2-Large (paper)", GPT2_PAPER, None, 0.97, 1.02, 0.6012, 10.87, None, None),
)
