"""What a layout promises of its compiled step, by name, checked against the compiled program."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from gpt_pjit.core.sharding import BATCH_AXES
from gpt_pjit.plan.collectives import Collective
from gpt_pjit.plan.hlo import Module

VIEWS = ("bitcast", "get-tuple-element", "parameter", "tuple", "while", "copy-done")
LAYER = "layer loop"


@dataclass(frozen=True)
class Step:
    """The evidence: what the checks look at of one compiled step."""

    module: Module
    collectives: Sequence[Collective]
    matrices: frozenset[str]  # the paths that are gathered and reduced one by one
    logits: tuple[int, int]  # tokens of a microbatch and vocabulary, of one device
    compute_dtype: str  # as XLA writes it

    @property
    def over_batch(self) -> list[Collective]:
        """Collectives over an axis that splits the batch."""
        return [c for c in self.collectives if set(c.axes) & set(BATCH_AXES)]

    @property
    def reductions(self) -> list[Collective]:
        return [c for c in self.over_batch if c.is_reduction and c.parameters]

    @property
    def gathers(self) -> list[Collective]:
        return [c for c in self.over_batch if c.kind == "all-gather" and c.parameters]


def check(layout: str, step: Step, batch_is_split: bool) -> dict[str, list[str]]:
    """For each promise of `layout` what breaks it: nothing where it is kept.

    Promises about collectives need a batch that is split over devices.
    """
    names = PROMISES[layout] if batch_is_split else ("one_float32_copy_of_the_logits",)
    return {name: list(CHECKS[name](step)) for name in names}


def _gathered_by_layer(step: Step) -> Iterable[str]:
    """Layers are gathered in the layer loop; what is used outside of it, once."""
    for c in step.gathers:
        is_layer = any(path.startswith("blocks/") for path in c.parameters)
        if c.dtype != step.compute_dtype or (is_layer and LAYER not in c.loops):
            yield _say(c)


def _one_copy_of_the_logits(step: Step) -> Iterable[str]:
    tokens, vocabulary = step.logits
    stored = []
    for name, computation in step.module.computations.items():
        if "fused" in name:
            continue
        for instruction in computation.values():
            if instruction.opcode not in VIEWS:
                stored += [
                    f"{instruction.name} holds float32 {list(array.shape)}"
                    for array in instruction.arrays
                    if array.dtype == "f32"
                    and array.shape[-1:] == (vocabulary,)
                    and array.nbytes == 4 * tokens * vocabulary
                ]
    return stored if len(stored) > 1 else ()


# What breaks a promise, for each; nothing where it is kept.
CHECKS: Mapping[str, Callable[[Step], Iterable[str]]] = {
    "no_collective_of_the_batch_in_a_loop": lambda s: _not(s.over_batch, lambda c: not c.loops),
    "no_gradient_reduction_in_a_loop": lambda s: _not(s.reductions, lambda c: not c.loops),
    "gradients_reduced_in_float32": lambda s: _not(s.reductions, lambda c: c.dtype == "f32"),
    "gradients_reduced_once": lambda s: _not_once(s, s.reductions),
    "weights_gathered_once_in_compute_dtype": lambda s: _not_once(s, s.gathers, s.compute_dtype),
    "updated_parameters_gathered_once_in_float32": lambda s: _not_once(s, s.gathers, "f32"),
    "weights_never_gathered": lambda s: map(_say, s.gathers),
    "weights_gathered_layer_by_layer_in_compute_dtype": _gathered_by_layer,
    "one_float32_copy_of_the_logits": _one_copy_of_the_logits,
}
REDUCED_ONCE = (
    "no_collective_of_the_batch_in_a_loop",
    "no_gradient_reduction_in_a_loop",
    "gradients_reduced_in_float32",
    "gradients_reduced_once",
    "one_float32_copy_of_the_logits",
)
PROMISES = {
    "ddp": (*REDUCED_ONCE, "weights_never_gathered"),
    "zero1": (*REDUCED_ONCE, "updated_parameters_gathered_once_in_float32"),
    "zero": (*REDUCED_ONCE, "weights_gathered_once_in_compute_dtype"),
    # Layers are reduced where they were gathered: in the loop, in the dtype of the gather.
    "fsdp": (
        "weights_gathered_layer_by_layer_in_compute_dtype",
        "one_float32_copy_of_the_logits",
    ),
}


def _not(collectives: Sequence[Collective], good: Callable[[Collective], bool]) -> Iterator[str]:
    return (_say(c) for c in collectives if not good(c))


def _not_once(
    step: Step, collectives: Sequence[Collective], dtype: str | None = None
) -> Iterator[str]:
    """Each matrix must be in exactly one, which runs once a step, and in the `dtype` if given."""
    yield from _not(collectives, lambda c: dtype in (None, c.dtype))
    yield from (f"{_say(c)} runs {c.times} times a step" for c in collectives if c.times != 1)
    for path in sorted(step.matrices):
        holding = [c for c in collectives if path in c.parameters]
        if len(holding) != 1:
            yield f"{path} is in {len(holding)} collectives, not one"


def _say(c: Collective) -> str:
    return f"{c.kind} {c.dtype} of {', '.join(c.parameters) or c.op_name}: {c.where}"
