"""Which requests share a computation, and in which shapes."""

import numpy as np

from gpt_pjit.evaluate.batches import Family, Request, batches, families, padded

WINDOW = 1000


def request(context, scored, first=0):
    return Request((*context, *range(first, first + scored)), scored)


def test_requests_of_one_context_share_all_but_its_last_token():
    context = tuple(range(65))
    group = (request(context, 3), request(context, 9), request(context, 9, first=50))
    other = request(context[1:], 9)
    found = families((*group, other), WINDOW)
    assert found == [Family(context[:64], group), Family((), (other,))]
    assert found[0].shape(WINDOW) == (64, 32)
    assert found[0].cost(WINDOW) == 64 + 3 * 32


def test_only_what_computes_less_is_shared():
    """With padding: 32 + 2 * 32 tokens are more than 2 * 32, and as many as 32 + 64."""
    for context, lengths in ((20, (5, 5)), (1, (5, 5, 5)), (30, (2, 5)), (65, (9,))):
        group = [request(range(context), n) for n in lengths]
        found = families(group, WINDOW)
        assert all(family.prefix == () for family in found)
        assert [family.requests for family in found] == [(r,) for r in group]


def test_what_was_cut_on_the_left_to_fit_shares_only_what_is_equal():
    window = 100
    text = tuple(range(98))
    cut = [Request((*text, *range(n))[-(window + 1) :], n) for n in (2, 3, 5, 6)]
    (together, *alone) = families(cut, window)
    assert together.prefix == text[:-1]
    assert together.requests == tuple(cut[:2])
    assert [family.requests for family in alone] == [(cut[2],), (cut[3],)]


def test_every_request_is_in_one_batch_of_few_shapes_and_bounded_rows():
    rng = np.random.default_rng(0)
    wanted = []
    for _ in range(300):
        context = tuple(rng.integers(0, 9, rng.integers(1, 700)).tolist())
        scored = rng.integers(1, 300, rng.integers(1, 6)).tolist()
        wanted += {request(context, n) for n in scored}
    grouped = families(wanted, WINDOW)
    found = list(batches(grouped, WINDOW, lambda length: max(1, 4 * WINDOW // length)))
    scored = [one for _, batch in found for family in batch for one in family.requests]
    assert len(scored) == len(wanted)
    assert set(scored) == set(wanted)
    for shape, batch in found:
        assert all(family.shape(WINDOW) == shape for family in batch)
        assert len(batch) == 1 or len(batch) * sum(shape) <= 4 * WINDOW
        assert max(shape) <= WINDOW
    sizes = [sum(shape) for shape, _ in found]
    assert sizes == sorted(sizes, reverse=True)
    assert len({shape for shape, _ in found}) < 30
    assert any(before for (before, _), _ in found)


def test_padded_lengths_are_a_handful():
    lengths = {padded(length, 1000) for length in range(1, 1001)}
    assert lengths == {32, 64, 128, 256, 512, 1000}
    assert all(padded(length, 1000) >= length for length in range(1, 1001))
    assert padded(3, 16) == 16
