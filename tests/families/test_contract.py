"""The contract of a family, run over every entry of `FAMILIES`; and that it can be broken."""

from __future__ import annotations

import contract
import pytest
import torch
from contract import Sample
from families import cases_base_dependent, cases_low_rank, cases_projections

from wiseft_core import interpolate_tensor
from wiseft_core.families import FAMILIES, Change, Family

contract.MAKERS += cases_projections.MAKERS
contract.MAKERS += cases_low_rank.MAKERS
contract.MAKERS += cases_base_dependent.MAKERS
SAMPLES = contract.samples()
every = pytest.mark.parametrize("sample", SAMPLES, ids=lambda s: "-".join([*s[:3], *s.factors]))


def test_every_form_of_every_family_has_samples():
    """No entry of `FAMILIES`, none of its parameters, forms and layouts is left out of the contract."""
    for name, family in FAMILIES.items():
        for parameter in family.parameters:
            made = [one for one in SAMPLES if (one.family, one.parameter) == (name, parameter)]
            for form in family.forms(parameter):
                assert any(one.factors.keys() == form.factors.keys() and one.layout in form.layouts for one in made)
                assert set(form.layouts) <= {one.layout for one in made}, (name, form.layouts)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_record_is_whole(name):
    """Name, axes, functions, source and docstrings."""
    assert FAMILIES[name].name == name
    contract.check_record(FAMILIES[name])


@every
def test_alpha_identities(sample: Sample):
    """Both ends and the middle."""
    contract.check_alpha_identities(sample)


@every
def test_tiles_do_not_matter(sample: Sample, monkeypatch: pytest.MonkeyPatch):
    """Any size of tile, from one element."""
    contract.check_tiles(sample, monkeypatch)


@every
def test_factor_dtypes_do_not_matter(sample: Sample):
    """Narrow factors widen exactly."""
    contract.check_factor_dtypes(sample)


@every
def test_every_factor_counts(sample: Sample):
    """None is optional, none is idle."""
    contract.check_every_factor_counts(sample)


@every
def test_shapes_are_checked(sample: Sample):
    """A factor that does not fit is refused before anything is computed."""
    contract.check_shapes(sample)


@every
def test_what_is_linear_is(sample: Sample):
    """Rescaling by one factor."""
    contract.check_closure(sample)


@every
def test_inputs_stay(sample: Sample):
    """Weights and factors keep their values."""
    contract.check_inputs_stay(sample)


@every
def test_surroundings_do_not_matter(sample: Sample):
    """Whatever torch was told to do by default."""
    contract.check_surroundings(sample)


def test_the_contract_can_be_broken():
    """Meta: a family that forgets one factor, or moves the base at alpha 0, is found out."""

    def forgetful(weight, factors, hyper, total):
        return factors["B"] @ factors["A"] * 0 + 1

    change = Change({"A": "rank in", "B": "out rank"}, tuned=forgetful)
    families = {"lora": Family("lora", {"weight": change}, "nowhere")}

    class Broken(Sample):
        def value(self, alpha, **options):
            factors = options.pop("factors", self.factors)
            return interpolate_tensor(self.weight, factors, alpha, families=families, **options)

    broken = Broken(*SAMPLES[0])
    with pytest.raises(AssertionError):
        contract.check_every_factor_counts(broken)
    with pytest.raises(AssertionError):
        contract.check_record(families["lora"])
    assert torch.equal(broken.value(0.0), broken.weight)


@pytest.mark.parametrize("name", ["lora", "dora"])
def test_a_false_claim_to_be_closed_is_found_out(name):
    """Meta: alpha folded into B alone is right for LoRA, and wrong for DoRA; doubled it is wrong for both."""
    change = FAMILIES[name].parameters["weight"]
    scaled = change._replace(rescaled=lambda factors, alpha, total: {"B": factors["B"] * alpha})
    twice = change._replace(rescaled=lambda factors, alpha, total: {"B": factors["B"] * (2 * alpha)})
    with pytest.raises(AssertionError):
        contract.check_closed(twice, 0.5)
    if name == "lora":
        contract.check_closed(scaled, 0.5)
    else:
        with pytest.raises(AssertionError):
            contract.check_closed(scaled, 0.5)
