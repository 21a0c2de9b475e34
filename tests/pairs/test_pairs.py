"""Every tensor lands on the right bytes in real architectures: proved by loading what we write, not by names."""

from __future__ import annotations

import pytest
from pairs.judge import check
from pairs.table import PAIRS, ready

from wiseft_core import WiseftError


@pytest.mark.parametrize("alpha", [1.0, 0.0, 0.5])
@pytest.mark.parametrize(("name", "form"), ready(), ids=map("/".join, ready()))
def test_the_output_loads_as_the_mix_of_base_and_tuned(name: str, form: str, alpha: float) -> None:
    """At 1 it is PEFT's merge (or the formula), at 0 the base bit for bit, between them the formula."""
    check(PAIRS[name], form, alpha)


REFUSED = [(pair.name, form) for pair in PAIRS.values() for form in pair.formats if pair.refused]


@pytest.mark.parametrize(("name", "form"), REFUSED, ids=map("/".join, REFUSED))
def test_what_is_not_supported_is_refused_by_name(name: str, form: str) -> None:
    """Some pairs have no place in an output of today: they are told so."""
    with pytest.raises(WiseftError) as said:
        check(PAIRS[name], form, 1.0)
    assert type(said.value).__name__ == PAIRS[name].refused
