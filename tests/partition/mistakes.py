"""Planted mistakes in a table: what lint must say, and what the usual idiom does instead.

The idiom, found in many trainers: the first row whose regex is *found in* the path, and a last row
that replicates whatever is left.
"""

import re
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec as P

from gpt_pjit.config import ModelConfig
from gpt_pjit.core.parameters import gpt_rules

SIZES = {"replica": 1, "data": 8, "tensor": 4}


def tree(vocab: int = 50304, heads: int = 12) -> dict:
    """The shapes of the 580M model, as nested dicts."""

    def shape(*sizes):
        return jax.ShapeDtypeStruct(sizes, jnp.float32)

    return {
        "embed": {"embedding": shape(vocab, 1536)},
        "blocks": {
            "attention": {
                "qkv": {"kernel": shape(18, 1536, 3, heads, 1536 // heads)},
                "out": {"kernel": shape(18, heads, 1536 // heads, 1536)},
            },
            "mlp": {
                "up": {"kernel": shape(18, 1536, 6144)},
                "down": {"kernel": shape(18, 6144, 1536)},
            },
            "norm_attention": {"scale": shape(18, 1536)},
            "norm_mlp": {"scale": shape(18, 1536)},
        },
        "norm_final": {"scale": shape(1536)},
    }


EMBED, QKV, OUT, UP, DOWN, NORMS, NORM_FINAL = ROWS = gpt_rules(ModelConfig())


def table(changes: dict | None = None, first: tuple = (), last: tuple = ()) -> tuple:
    """The GPT's table with rows changed, dropped (None) or added."""
    changed = [(changes or {}).get(row, row) for row in ROWS]
    return (*first, *(row for row in changed if row is not None), *last)


def without_axis(axis: str) -> tuple:
    return renamed({axis: None})


def renamed(names: dict) -> tuple:
    """The GPT's table with other names for its axes."""
    return tuple((regex, tuple(names.get(a, a) for a in spec)) for regex, spec in ROWS)


def with_layer(name: str) -> dict:
    params = tree()
    params["blocks"][name] = {"kernel": params["blocks"]["mlp"]["up"]["kernel"]}
    return params


def idiom(rules: tuple, path: str) -> P:
    """What the usual idiom gives a parameter."""
    for regex, spec in (*rules, (".*", (None,))):
        if re.search(regex, path):
            return P(*spec)
    raise AssertionError("unreachable")


@dataclass(frozen=True)
class Mistake:
    """`says` are words of the finding.

    `idiom` is what the idiom does, in the words of docs/partitioning.md, and `shard` the part of
    `parameter` that it then gives a device; None where it ends with an exception.
    """

    name: str
    kind: str
    rules: tuple
    says: tuple[str, ...]
    parameter: str
    idiom: str
    shard: tuple[int, ...] | None
    params: dict = field(default_factory=tree)
    sizes: dict = field(default_factory=lambda: SIZES)

    def idiom_shard(self) -> tuple[int, ...]:
        leaf = self.params
        for key in self.parameter.split("/"):
            leaf = leaf[key]
        spec = idiom(self.rules, self.parameter)
        mesh = AbstractMesh(tuple(self.sizes.values()), tuple(self.sizes))
        return NamedSharding(mesh, spec).shard_shape(leaf.shape)


EMBEDDING, QKV_KERNEL = "embed/embedding", "blocks/attention/qkv/kernel"
UP_KERNEL, DOWN_KERNEL = "blocks/mlp/up/kernel", "blocks/mlp/down/kernel"
NAMELESS = "an exception that does not name the parameter"

MISTAKES = (
    Mistake(
        "a new layer without a row",
        "unmatched",
        ROWS,
        ("parameter='blocks/gate/kernel'", "no rule matches it", "add a rule for it"),
        "blocks/gate/kernel",
        "whole on every device",
        (18, 1536, 6144),
        params=with_layer("gate"),
    ),
    Mistake(
        "a row forgotten",
        "unmatched",
        table({UP: None}),
        ("parameter='blocks/mlp/up/kernel'", "no rule matches it", "add a rule for it"),
        UP_KERNEL,
        "whole on every device",
        (18, 1536, 6144),
    ),
    Mistake(
        "a typo in a regex",
        "dead",
        table({DOWN: ("blocks/mlp/dwon/kernel", DOWN[1])}),
        ("rule 4='blocks/mlp/dwon/kernel'", "matches no", "did you mean blocks/mlp/down/kernel?"),
        DOWN_KERNEL,
        "whole on every device",
        (18, 6144, 1536),
    ),
    Mistake(
        "a regex for a part of the path",
        "dead",
        table({UP: ("up/kernel", UP[1])}, last=(("blocks/group/kernel", (None, None, None)),)),
        ("rule 3='up/kernel'", "a part of blocks/group/kernel", "write '.*up/kernel'"),
        "blocks/group/kernel",
        "takes `blocks/group/kernel` too, whose own row comes later",
        (18, 192, 1536),
        params=with_layer("group"),
    ),
    Mistake(
        "a row for a layer that is gone",
        "dead",
        table(last=(("head/kernel", ("data", "tensor")),)),
        ("rule 7='head/kernel'", "matches no parameter", "remove it"),
        EMBEDDING,
        "keeps the row, without a word",
        (12576, 192),
    ),
    Mistake(
        "a wide row above narrow ones",
        "shadowed",
        table(first=(("blocks/mlp/.*/kernel", (None, "data", "tensor")),)),
        (
            "rule 5='blocks/mlp/down/kernel'",
            "(blocks/mlp/down/kernel) is taken by rule 0 'blocks/mlp/.*/kernel'",
            "move it up, or remove it",
        ),
        DOWN_KERNEL,
        "splits `down` like `up`: F over data, D over tensor",
        (18, 768, 384),
    ),
    Mistake(
        "a second row for one parameter",
        "shadowed",
        table(last=((EMBED[0], ("data", "tensor")),)),
        ("rule 7='embed/embedding'", "taken by rule 0", "move it up, or remove it"),
        EMBEDDING,
        "takes the first; the edit has no effect",
        (12576, 192),
    ),
    Mistake(
        "an axis of another project",
        "unknown axis",
        table({UP: (UP[0], (None, "fsdp", "tensor"))}),
        (
            "blocks/mlp/up/kernel (rule 3",
            "unknown mesh axis 'fsdp'",
            "known: replica, data, tensor",
        ),
        UP_KERNEL,
        NAMELESS,
        None,
    ),
    Mistake(
        "a typo in an axis",
        "unknown axis",
        table({DOWN: (DOWN[0], (None, "tenser", "data"))}),
        ("blocks/mlp/down/kernel (rule 4", "unknown mesh axis 'tenser'", "did you mean 'tensor'?"),
        DOWN_KERNEL,
        NAMELESS,
        None,
    ),
    Mistake(
        "a mesh axis without a role",
        "axis without a role",
        renamed({"tensor": "expert"}),
        ("mesh.expert=4", "has no role", "roles={'data': 'batch', 'expert': 'batch'} if it splits"),
        UP_KERNEL,
        "splits over it; gradients are summed over it, or not",
        (18, 192, 1536),
        sizes={"data": 8, "expert": 4},
    ),
    Mistake(
        "a mesh axis without a role, in no row",
        "axis without a role",
        ROWS,
        ("mesh.stage=2", "has no role", "if it splits the batch, 'model' if not"),
        UP_KERNEL,
        "2 devices hold and compute the same",
        (18, 384, 1536),
        sizes={"data": 4, "tensor": 4, "stage": 2},
    ),
    Mistake(
        "our axes on a mesh with the names of others",
        "unknown axis",
        ROWS,
        ("embed/embedding (rule 0", "unknown mesh axis 'tensor'", "known: fsdp, tp"),
        EMBEDDING,
        NAMELESS,
        None,
        sizes={"fsdp": 8, "tp": 4},
    ),
    Mistake(
        "a table of others that forgets an axis of theirs",
        "unused axis",
        renamed({"data": None, "tensor": "tp"}),
        ("mesh.fsdp=8", "no rule splits anything over it", "name 'fsdp' in a spec"),
        UP_KERNEL,
        "holds whole over `fsdp`, in every layout",
        (18, 1536, 1536),
        sizes={"fsdp": 8, "tp": 4},
    ),
    Mistake(
        "one axis for two dimensions",
        "repeated axis",
        table({EMBED: (EMBED[0], ("data", "data"))}),
        ("embed/embedding (rule 0", "names 'data' twice", "split one dimension over it"),
        EMBEDDING,
        NAMELESS,
        None,
    ),
    Mistake(
        "one axis alone and in a tuple",
        "repeated axis",
        table({DOWN: (DOWN[0], (None, ("tensor", "data"), "data"))}),
        ("blocks/mlp/down/kernel (rule 4", "names 'data' twice", "split one dimension over it"),
        DOWN_KERNEL,
        NAMELESS,
        None,
    ),
    Mistake(
        "a spec that is too short",
        "rank",
        table({EMBED: (EMBED[0], ("tensor",))}),
        (
            "embed/embedding (rule 0",
            "has rank 1, and the tensor rank 2",
            "write an entry for each dimension",
        ),
        EMBEDDING,
        "leaves D whole: 8 times the bytes",
        (12576, 1536),
    ),
    Mistake(
        "a spec that forgets the layers",
        "rank",
        table({UP: (UP[0], ("data", "tensor"))}),
        (
            "blocks/mlp/up/kernel (rule 3",
            "has rank 2, and the tensor rank 3",
            "write an entry for each dimension",
        ),
        UP_KERNEL,
        "splits the layers over data, and D over tensor",
        (9, 384, 6144),
        sizes={"replica": 1, "data": 2, "tensor": 4},
    ),
    Mistake(
        "a vocabulary that is not padded",
        "indivisible",
        ROWS,
        (
            "embed/embedding (rule 0",
            "dimension 0 of shape (50257, 1536) is 50257, not divisible by 4 (tensor 4)",
            "try 50256 or 50260, or pad it to 50304, the next multiple of 128",
        ),
        EMBEDDING,
        NAMELESS,
        None,
        params=tree(vocab=50257),
    ),
    Mistake(
        "more tensor parts than heads",
        "indivisible",
        ROWS,
        (
            "blocks/attention/qkv/kernel (rule 1",
            "dimension 3 of shape (18, 1536, 3, 12, 128) is 12, not divisible by 8 (tensor 8)",
            "try 8 or 16; mesh sizes that divide it and 32: 1, 2, 4",
        ),
        QKV_KERNEL,
        NAMELESS,
        None,
        sizes={"replica": 1, "data": 4, "tensor": 8},
    ),
    Mistake(
        "alternatives of which none fits",
        "indivisible",
        table({EMBED: (*EMBED, ("data", None))}),
        (
            "embed/embedding (rule 0",
            "none of its 2 specs fits: ('tensor', 'data'): dimension 0 of shape (50257, 1536)",
            "('data', None): dimension 0 of shape (50257, 1536) is 50257, not divisible by 8",
            "add one that does",
        ),
        EMBEDDING,
        "knows no alternatives",
        None,
        params=tree(vocab=50257),
    ),
    Mistake(
        "a last row for everything else",
        "catch-all",
        table({UP: None, DOWN: None}, last=((".*", (None, "data", "tensor")),)),
        (
            "rule 5='.*'",
            "is a catch-all of 2 parameters, 1,358,954,496 bytes",
            "blocks/mlp/down/kernel|blocks/mlp/up/kernel",
        ),
        DOWN_KERNEL,
        "splits `down` like `up`, and whatever comes next",
        (18, 768, 384),
    ),
    Mistake(
        "a row for all of a module",
        "catch-all",
        table({EMBED: ("embed/.*", EMBED[1])}),
        ("rule 0='embed/.*'", "any other name instead of embed/embedding", "name what it is for"),
        EMBEDDING,
        "takes the next parameter of the module too",
        (12576, 192),
    ),
    Mistake(
        "no row uses the tensor axis",
        "unused axis",
        without_axis("tensor"),
        ("mesh.tensor=4", "no rule splits anything over it", "set mesh.tensor=1"),
        UP_KERNEL,
        "4 devices hold and compute the same",
        (18, 192, 6144),
    ),
    Mistake(
        "no row uses the data axis",
        "unused axis",
        without_axis("data"),
        ("mesh.data=8", "no rule splits anything over it", "name 'data' in a spec"),
        UP_KERNEL,
        "state is not sharded at all, whatever the layout",
        (18, 1536, 1536),
    ),
    Mistake(
        "a large matrix replicated",
        "replicated",
        table({EMBED: (EMBED[0], (None, None))}),
        ("embed/embedding (rule 0", "whole on every device, 309,067,776 bytes", "split it"),
        EMBEDDING,
        "whole on every device",
        (50304, 1536),
    ),
    Mistake(
        "a spec of nothing but None",
        "replicated",
        table({UP: (UP[0], (None, None, None))}),
        ("blocks/mlp/up/kernel (rule 3", "whole on every device", "split it, for example"),
        UP_KERNEL,
        "whole on every device",
        (18, 1536, 6144),
    ),
    Mistake(
        "a broken regex",
        "malformed",
        table({UP: ("blocks/mlp/(up/kernel", UP[1])}),
        ("rule 3='blocks/mlp/(up/kernel'", "is not a valid regex", "correct or escape it"),
        UP_KERNEL,
        "an exception that does not name the row",
        None,
    ),
    Mistake(
        "a row without a spec",
        "malformed",
        table({NORMS: NORMS[:1]}),
        ("rule 5=", "is not a (regex, value) row", "write a regex, then a value"),
        "norm_final/scale",
        "an exception that does not name the row",
        None,
    ),
    Mistake(
        "a number for an axis",
        "not a spec",
        table({UP: (UP[0], (None, 8, None))}),
        ("blocks/mlp/up/kernel (rule 3", "is not a spec", "None, an axis, or a tuple of axes"),
        UP_KERNEL,
        NAMELESS,
        None,
    ),
    Mistake(
        "a string for a spec",
        "not a spec",
        table({EMBED: (EMBED[0], "data")}),
        ("embed/embedding (rule 0", "is not a spec", "write a tuple"),
        EMBEDDING,
        NAMELESS,
        None,
    ),
)
