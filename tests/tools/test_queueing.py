"""Waiting times of queues, against formulas that are known in closed form."""

import math

import pytest

from capacity.queueing import place_quantile, wait_quantile, wait_share


@pytest.mark.parametrize("utilisation", [0.1, 0.5, 0.8, 0.95])
def test_the_mean_wait_is_that_of_pollaczek_and_khinchine(utilisation):
    width = 0.02
    steps = range(int(60 / (1 - utilisation) / width))
    tail = sum(1 - wait_share((n + 0.5) * width, utilisation) for n in steps) * width
    mean = utilisation / (2 * (1 - utilisation))
    assert tail == pytest.approx(mean, rel=0.01)


@pytest.mark.parametrize("utilisation", [0.3, 0.9])
def test_short_waits_have_erlangs_closed_form(utilisation):
    for wait in (0, 0.25, 0.99):
        exact = (1 - utilisation) * math.exp(utilisation * wait)
        assert wait_share(wait, utilisation) == pytest.approx(exact)


def test_the_quantile_inverts_the_distribution():
    for utilisation, share in ((0.5, 0.99), (0.8, 0.5), (0.99, 0.999)):
        wait = wait_quantile(utilisation, share)
        assert wait_share(wait, utilisation) == pytest.approx(share, abs=1e-5)
    assert wait_quantile(0.005) == 0


def test_one_place_is_the_queue_with_exponential_times():
    """M/M/1: the wait exceeds t with probability rho exp(-(1 - rho) t)."""
    for load in (0.5, 0.9):
        exact = math.log(load / 0.01) / (1 - load)
        assert place_quantile(1, load) == pytest.approx(exact)
    assert place_quantile(1, 0.009) == 0


def test_erlangs_c_of_two_places():
    """M/M/2: a request waits with probability 2 rho^2 / (1 + rho)."""
    load = 1.6
    waits = 2 * 0.8**2 / 1.8
    assert place_quantile(2, load) == pytest.approx(math.log(waits / 0.01) / 0.4)


def test_impossible_loads_are_refused():
    with pytest.raises(ValueError, match="not from 0 to 0.99"):
        wait_quantile(1.0)
    with pytest.raises(ValueError, match="does not fit into 4 places"):
        place_quantile(4, 4)
