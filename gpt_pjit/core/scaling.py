"""What is tuned on a small model holds for a wider and deeper one: muP and CompleteP, as tables.

muP (Yang et al., 2022) keeps the updates of every activation the same size at any width; CompleteP
(Dey et al., 2025) adds depth. For AdamW, with the ratio m of widths and the ratio l of depths:

| | initial standard deviation | learning rate | weight decay | output |
|---|---|---|---|---|
| matrices of the blocks | 1 / sqrt(m) | 1 / m | m | 1 / l of each branch |
| embedding, head | 1 | 1 | 1 | 1 / m of the logits |
| gains, biases | 1 | 1 | 0 | |

Scores are 1 / K of queries times keys, not 1 / sqrt(K), K being the size of a head.
"""

from ml_collections import ConfigDict

from gpt_pjit.core.parameters import MATRIX, Parameter, parameter_table

OUTPUTS = ("blocks/attention/out/kernel", "blocks/mlp/down/kernel")


def scale_from(c: ConfigDict, *, width: int, layers: int, head_size: int) -> None:
    """Sets the tables and factors of `c`, whose rates were tuned on a model of these sizes.

    At these sizes, all factors are 1. `d_ff` has to grow with the width.
    """
    wider, deeper = c.model.d_model / width, c.model.n_layers / layers
    size = c.model.head_size or c.model.d_model // c.model.n_heads
    rows = parameter_table(c.model)

    def hidden(row: Parameter) -> bool:
        return row.kind == MATRIX and row.regex.startswith("blocks/")

    def deviation(row: Parameter) -> float:
        if not hidden(row):
            return 1.0
        # Outputs of branches are divided by the root of the depth, which the factor 1 / l replaces.
        return (deeper / wider if row.regex in OUTPUTS else 1 / wider) ** 0.5

    c.model.init_rules = tuple((row.regex, deviation(row)) for row in rows)
    c.model.attention_scale = head_size**0.5 / size
    c.model.logit_factor = 1 / wider
    c.model.residual_factor = 1 / deeper
    c.optim.lr_rules = tuple((row.regex, 1 / wider if hidden(row) else 1.0) for row in rows)
    # The decay of a step is multiplied by the learning rate too.
    c.optim.decay_rules = tuple(
        (row.regex, wider if hidden(row) else float(row.kind == MATRIX)) for row in rows
    )
