"""Log-likelihoods are those of the plain model, however requests are batched and split."""

import dataclasses

import numpy as np
import pytest

from gpt_pjit.errors import ConfigError
from gpt_pjit.evaluate import Request, Scorer
from gpt_pjit.evaluate.scorer import padded
from gpt_pjit.trained import load_trained


def random_requests(lengths, seed=0):
    rng = np.random.default_rng(seed)
    for length in lengths:
        tokens = tuple(rng.integers(0, 257, length + 1).tolist())
        yield Request(tokens, int(rng.integers(1, length + 1)))


@pytest.mark.parametrize("tensor", [1, 4])
def test_scores_are_those_of_the_plain_model(workdir, plain, tensor):
    trained = load_trained(workdir, tensor=tensor)
    requests = list(random_requests((1, 32, 20)))
    for request, result in zip(requests, Scorer(trained).score(requests), strict=True):
        nll, greedy = plain(request)
        np.testing.assert_allclose(result.nll, nll, atol=2e-5)
        assert np.array_equal(result.greedy, greedy)
        assert result.log_likelihood == pytest.approx(-nll.sum(), abs=1e-4)


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
        return trained.forward(weights, tokens_BT)

    counted = dataclasses.replace(trained, forward=forward)
    requests = list(random_requests((5, 9, 20, 31)))
    runs = []
    scorer = Scorer(counted, window=128)
    run = scorer._run
    scorer._run = lambda length, batch: runs.append(len(batch)) or run(length, batch)
    results = scorer.score(requests * 3)
    assert sum(runs) == len(requests)
    assert len(shapes) == 1  # traced once for all lengths up to 32
    for first, again in zip(results[:4], results[4:8], strict=True):
        assert np.array_equal(first.nll, again.nll)


def test_padded_lengths_are_a_handful():
    lengths = {padded(length, 1000) for length in range(1, 1001)}
    assert lengths == {32, 64, 128, 256, 512, 1000}
    assert all(padded(length, 1000) >= length for length in range(1, 1001))
    assert padded(3, 16) == 16


def test_learned_positions_end_with_training(trained):
    config = trained.config
    model = dataclasses.replace(config.model, positions="learned")
    learned = dataclasses.replace(trained, config=dataclasses.replace(config, model=model))
    assert Scorer(learned).window == 32
    with pytest.raises(ConfigError, match=r"window=64: model.positions is learned and holds 32"):
        Scorer(learned, window=64)
    with pytest.raises(ConfigError, match=r"window=0: must be 1 or more"):
        Scorer(trained, window=0)
