"""What esalign asks of nevergrad's optimisers beyond what they offer."""

import numpy as np

from esalign.optimizers.nevergrad import Nevergrad


def test_cma_recommends_its_mean_and_not_its_luckiest_candidate():
    optimizer = Nevergrad(dim=30, sigma=0.5, population=20, seed=1, name="DiagonalCMA")
    rng, nearer = np.random.default_rng(0), 0
    for _ in range(40):
        candidates = optimizer.ask()
        optimizer.tell(candidates, -np.square(candidates - 1).sum(axis=1) + 20 * rng.standard_normal(20))
        luckiest = optimizer._search.provide_recommendation().value
        nearer += np.square(optimizer.mean - 1).sum() < np.square(luckiest - 1).sum()
        assert not any(np.array_equal(optimizer.mean, candidate) for candidate in candidates)
    assert nearer > 30
