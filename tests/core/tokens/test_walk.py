"""Whatever changes on the way, each set is read in its order: no example twice, none left out."""

import json

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from gpt_pjit.config import Config, replaced
from gpt_pjit.core.tokens import first_walk, tokens_before, walk_to_json, walks_of, walks_on
from gpt_pjit.core.tokens.index import hash64


def reading(sets, batch_size=4, seed=7, length=16):
    """A config that reads `sets`, weights by name; in a mixture, a weight may change with steps."""
    fields = {"data.sources": tuple(sets.items()), "seed": seed}
    fields |= {"data.batch_size": batch_size, "data.sequence_length": length}
    return replaced(Config(), fields)


def start(sets, **shape):
    return [first_walk(reading(sets, **shape), list(sets))]


def change(walks, step, sets, **shape):
    return walks_on(walks, step, reading(sets, **shape), list(sets))


def read(walks, stop):
    """What the steps below `stop` read: for each (set, its seed), the numbers in order."""
    found = {}
    for step in range(stop):
        walk = [walk for walk in walks if walk.step <= step][-1]
        chosen, numbers = walk.draw(step, np.arange(walk.batch_size))
        for s, number in zip(chosen.tolist(), numbers.tolist(), strict=True):
            one = walk.sets[s]
            found.setdefault((one.sha256, one.seed), []).append(number)
    return found


WEIGHT = st.one_of(
    st.integers(1, 9),
    st.tuples(st.tuples(st.integers(1, 40), st.integers(0, 9)), st.just((50, 1))),
)
CHANGE = st.tuples(
    st.integers(0, 60),  # at which step; below an earlier one if that step's checkpoint is lost
    st.dictionaries(st.sampled_from("bc"), WEIGHT),
    st.integers(1, 9),  # batch size
)


@settings(deadline=None)
@given(changes=st.lists(CHANGE, min_size=1, max_size=5))
def test_no_example_is_read_twice_and_none_is_left_out(changes):
    walks = start({"a": 2, "b": 1, "c": 1})
    for step, others, batch_size in changes:
        sets = {"a": 2, "b": 0, "c": 0} | others
        sets = {name: weight or ((0, 0),) for name, weight in sets.items()}
        walks = change(walks, step, sets, batch_size=batch_size)
        assert [walk.step for walk in walks] == sorted({walk.step for walk in walks})
    for numbers in read(walks, 70).values():
        assert numbers == list(range(len(numbers)))
    assert tokens_before(walks, 70) == 16 * sum(map(len, read(walks, 70).values()))
    record = json.loads(json.dumps({"walks": [walk_to_json(walk) for walk in walks]}))
    assert walks_of(Config(), record) == walks


def test_a_config_that_reads_alike_changes_nothing():
    walks = start({"a": 2, "b": 1})
    assert change(walks, 9, {"a": 2, "b": 1}) == walks
    halved = change(walks, 9, {"a": 2, "b": 1}, batch_size=2)
    assert halved[:1] == walks
    assert change(halved, 9, {"a": 2, "b": 1}, batch_size=2) == halved
    assert change(halved, 8, {"a": 2, "b": 1}) == walks  # back before the change


def test_a_set_continues_beside_a_new_one():
    """Also that of a run of one set, whose order is another than in a mixture."""
    (one,) = start({"a": 1})
    assert one.sets[0].seed == 7
    _, two = change([one], 5, {"b": 1, "a": 1})
    assert two.sets[1] == one.sets[0]._replace(taken=20)
    assert two.sets[0] == ("b", int(hash64(7, 0)[0]), 0)


@pytest.mark.parametrize("shape", [{"seed": 8}, {"length": 32}])
def test_another_seed_or_length_begins_the_sets_anew(shape):
    *_, last = change(start({"a": 1}), 5, {"a": 1}, **shape)
    assert (last.step, last.sets[0].taken) == (5, 0)


def test_a_stage_is_what_a_change_of_weights_would_be():
    staged = start({"a": 2, "b": ((5, 3),)})
    changed = change(start({"a": 2, "b": ((0, 0),)}), 5, {"a": 2, "b": 3})
    assert read(staged, 12) == read(changed, 12)
    assert len(changed) == 2
