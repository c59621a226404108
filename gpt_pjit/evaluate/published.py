"""Results of other models as their sources state them; what a source does not state is absent.

None of these were computed here. Accuracies are fractions.
"""

from __future__ import annotations

from dataclasses import dataclass

RUN_LOG = (
    "training log of the 580M run, github.com/fattorib/ZeRO-transformer logs/580.md at commit "
    "8c18a534 (HellaSwag at 333ee149); GPT-2's LAMBADA and PIQA there are from "
    "github.com/EleutherAI/gpt-neo"
)
GPT2_PAPER = (
    "Radford et al. 2019, Language Models are Unsupervised Multitask Learners, table 3: its own "
    "detokenisers and its own form of LAMBADA, so not what lm-eval computes"
)


@dataclass(frozen=True)
class Published:
    name: str
    source: str
    results: dict[str, dict[str, float]]


PUBLISHED = (
    Published(
        "GPT2-Medium",
        RUN_LOG,
        {
            "wikitext2": {"bits_per_byte": 1.0003},
            "text8": {"bits_per_byte": 1.1024},
            "lambada": {"acc": 0.430, "perplexity": 18.26},
            "piqa": {"acc": 0.676},
            "hellaswag": {"acc": 0.3331},
        },
    ),
    Published(
        "GPT-580M",
        RUN_LOG,
        {
            "wikitext2": {"bits_per_byte": 0.9547},
            "enwik8": {"bits_per_byte": 1.089},
            "text8": {"bits_per_byte": 1.133},
            "lambada": {"acc": 0.464, "perplexity": 14.08},
            "piqa": {"acc": 0.668},
            "hellaswag": {"acc": 0.3333},
        },
    ),
    Published(
        "GPT2-Large",
        RUN_LOG,
        {
            "wikitext2": {"bits_per_byte": 0.9578},
            "text8": {"bits_per_byte": 1.0543},
            "lambada": {"acc": 0.476, "perplexity": 12.97},
            "piqa": {"acc": 0.703},
            "hellaswag": {"acc": 0.3640},
        },
    ),
    Published(
        "GPT2-Medium (paper)",
        GPT2_PAPER,
        {
            "enwik8": {"bits_per_byte": 1.01},
            "text8": {"bits_per_byte": 1.06},
            "lambada": {"acc": 0.5548, "perplexity": 15.60},
        },
    ),
    Published(
        "GPT2-Large (paper)",
        GPT2_PAPER,
        {
            "enwik8": {"bits_per_byte": 0.97},
            "text8": {"bits_per_byte": 1.02},
            "lambada": {"acc": 0.6012, "perplexity": 10.87},
        },
    ),
)
