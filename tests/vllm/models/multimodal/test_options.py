"""Each pair of options gives answers, is refused, or has two values of one setting.

`support.options` has the table. ``generation/test_options.py`` shows the answers.
"""

import pytest

from support.loading import make_config
from support.options import (
    OPTIONS,
    REFUSED,
    alternatives,
    answered,
    engine_options,
    pairs,
    pairs_of,
    rows,
)

ELSEWHERE = {"v1", "v2", "int8"}  # of the environment, and of the checkpoint


def config_of(checkpoint, row):
    options = engine_options(row, "/nowhere")
    return make_config(checkpoint, "float32", **options)


def test_no_pair_is_left_out():
    covered = {pair for row in rows() for pair in pairs_of(row)}
    for pair in pairs():
        kinds = [pair in covered, pair in REFUSED, alternatives(pair)]
        assert sum(kinds) == 1, sorted(pair)
    assert {*answered()} == covered


def test_the_table_has_no_option_twice():
    """Options of one setting must differ, else a row would not have what it says."""
    shown = [str(option.engine) for option in OPTIONS.values() if option.engine]
    assert len({*shown}) == len(shown)


@pytest.mark.parametrize("pair", REFUSED, ids=lambda pair: "-".join(sorted(pair)))
def test_refused_pairs(checkpoint, pair):
    for option in pair - ELSEWHERE:
        assert config_of(checkpoint, [option])
    with pytest.raises(ValueError) as refusal:
        config_of(checkpoint, sorted(pair))
    assert REFUSED[pair] in str(refusal.value)


@pytest.mark.parametrize("pair", answered(), ids=lambda pair: "-".join(sorted(pair)))
def test_other_pairs_are_not_refused(checkpoint, pair):
    assert config_of(checkpoint, sorted(pair))
