"""Log-likelihoods are those of the plain model, however requests are batched and split."""

import dataclasses

import numpy as np
import pytest

from gpt_pjit.core.errors import ConfigError
from gpt_pjit.evaluate import scorer as scoring
from gpt_pjit.evaluate.scorer import PrefixGroup, Request, Scorer
from gpt_pjit.trained import load_trained
from tests.evaluate.conftest import with_forward
from tests.generate.conftest import LEARNED, model


def random_requests(lengths, seed=0):
    rng = np.random.default_rng(seed)
    for length in lengths:
        tokens = tuple(rng.integers(0, 257, length + 1).tolist())
        yield Request(tokens, int(rng.integers(1, length + 1)))


@pytest.mark.parametrize("tensor", [1, 4])
def test_scores_are_those_of_the_plain_model(workdir, plain, tensor):
    trained = load_trained(workdir, tensor=tensor)
    requests = list(random_requests((1, 32)))
    for request, result in zip(requests, Scorer(trained).score(requests), strict=True):
        nll, greedy = plain(request)
        np.testing.assert_allclose(result.nll, nll, atol=2e-5)
        assert np.array_equal(result.greedy, greedy)


def test_results_do_not_depend_on_the_batch(trained):
    requests = list(random_requests(range(1, 33), seed=1))
    together = Scorer(trained, rows=2).score(requests)
    alone = [Scorer(trained, window=32).score([request])[0] for request in requests[::9]]
    for one, other in zip(together[::9], alone, strict=True):
        np.testing.assert_allclose(one.nll, other.nll, atol=1e-5)


def test_identical_requests_are_computed_once_and_shapes_are_few(trained):
    shapes = []

    def forward(weights, tokens_BT):
        shapes.append(tokens_BT.shape)
        return trained.model.forward(weights, tokens_BT)

    counted = with_forward(trained, forward)
    requests = list(random_requests((5, 9, 20, 31)))
    runs = []
    scorer = Scorer(counted, window=128)
    run = scorer._run
    scorer._run = lambda shape, batch: runs.append(len(batch)) or run(shape, batch)
    results = scorer.score(requests * 3)
    assert sum(runs) == len(requests)
    assert len(shapes) == 1  # traced once for all lengths up to 32
    for first, again in zip(results[:4], results[4:8], strict=True):
        assert np.array_equal(first.nll, again.nll)


def test_learned_positions_end_with_training(trained):
    config = trained.config
    model = dataclasses.replace(config.model, positions="learned")
    learned = dataclasses.replace(trained, config=dataclasses.replace(config, model=model))
    assert Scorer(learned).window == 32
    with pytest.raises(ConfigError, match=r"a window of 64 tokens: .* has learned 32 positions"):
        Scorer(learned, window=64)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_losses_that_are_not_finite_are_refused(value, with_logits):
    table = np.zeros((257, 512))
    table[7, 7] = value
    scorer = Scorer(with_logits(table))
    assert scorer.score([Request((1, 2), 1)])
    with pytest.raises(ConfigError, match=r"piqa: the model's losses are not finite"):
        scorer.score([Request((7, 7, 7), 2)], "piqa")


def items(lengths, choices, seed=0, cut=None):
    """Contexts of `lengths` tokens, each with as many continuations as `choices` says."""
    rng = np.random.default_rng(seed)
    found = []
    for context, n in zip(lengths, choices, strict=True):
        shared = rng.integers(0, 257, context).tolist()
        for _ in range(n):
            scored = int(rng.integers(1, 30))
            tokens = (*shared, *rng.integers(0, 257, scored).tolist())
            found.append(Request(tokens[-cut:] if cut else tokens, scored))
    rng.shuffle(found)
    return [*found, found[0]]


@pytest.mark.parametrize(
    ("mesh", "positions"), [((1, 1, 1), "learned"), ((1, 2, 2), "alibi")], ids=str
)
def test_a_context_read_once_changes_nothing(mesh, positions, monkeypatch):
    """Of unequal lengths, some cut from the left, on windows up to the last learned position."""
    trained = model(mesh, positions=positions)
    requests = items((2, 40, 64, 67, 90, 5), (2, 3, 4, 1, 3, 2), cut=LEARNED + 1)
    requests += random_requests((1, 30, 60, LEARNED), seed=1)
    scorer, prefixes = Scorer(trained, rows=2), []
    run = scorer._run
    scorer._run = lambda shape, batch: prefixes.append(shape[0]) or run(shape, batch)
    shared = scorer.score(requests)
    assert {0, 64} <= set(prefixes)
    monkeypatch.setattr(
        scoring, "group_by_prefix", lambda found, _: [PrefixGroup((), (r,)) for r in found]
    )
    alone = Scorer(trained, rows=2).score(requests)
    for one, other, request in zip(shared, alone, requests, strict=True):
        assert len(one.nll) == request.scored
        np.testing.assert_allclose(one.nll, other.nll, atol=1e-5, rtol=0)
        assert np.array_equal(one.greedy, other.greedy)
    assert any(result.greedy.any() for result in shared)
