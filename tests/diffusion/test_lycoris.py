"""LyCORIS's methods on a small UNet, against its formulas written out in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusion.models import unet

from wiseft_core import Adapter, interpolate, rescale
from wiseft_core.errors import ConfigError, ShapeMismatch, Unsupported

LINEAR = "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.2"
CONV = "down_blocks.1.resnets.0.conv1"
POINT = "down_blocks.0.attentions.0.proj_in"
EXACT = {"rtol": 0, "atol": 1e-6}


@pytest.fixture(scope="module")
def base():
    """A UNet's weights."""
    return {name: value.detach().clone() for name, value in unet().state_dict().items()}


def random(*shape):
    """Random values, as float32."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float32) * 0.3


def spelled(module, **tensors):
    """The tensors under LyCORIS's names."""
    return {f"lora_unet_{module.replace('.', '_')}.{name.replace('__', '.')}": value for name, value in tensors.items()}


def wide(value):
    """A tensor as numpy's float64."""
    return value.double().numpy()


def check(base, adapter, module, tuned):
    """One weight is as the formula says at 1, halfway at a half, and all others are the base's."""
    name = f"{module}.weight"
    view = interpolate(base, adapter, 1.0)
    assert view.touched == {name} or set(view.touched) == {name}
    torch.testing.assert_close(view[name].double(), torch.from_numpy(tuned), **EXACT)
    half = (wide(base[name]) + tuned) / 2
    torch.testing.assert_close(view.at(0.5)[name].double(), torch.from_numpy(half), **EXACT)
    assert torch.equal(view.at(0.0)[name], base[name])


def test_loha(base):
    """W + (alpha / rank) (w1_a w1_b) ∘ (w2_a w2_b), on a layer and on a 3 by 3 convolution."""
    for module in (LINEAR, CONV):
        weight = wide(base[f"{module}.weight"])
        rows, columns = weight.shape[0], weight[0].size
        one, two, three, four = random(rows, 2), random(2, columns), random(rows, 2) + 1, random(2, columns) - 1
        adapter = spelled(
            module, hada_w1_a=one, hada_w1_b=two, hada_w2_a=three, hada_w2_b=four, alpha=torch.tensor(3.0)
        )
        change = 1.5 * (wide(one) @ wide(two)) * (wide(three) @ wide(four))
        check(base, adapter, module, weight + change.reshape(weight.shape))


def test_loha_with_cores(base):
    """The Tucker form of a convolution: both products have a core over the kernel."""
    weight = wide(base[f"{CONV}.weight"])
    rows, columns = weight.shape[:2]
    cores = random(2, 2, 3, 3), random(2, 2, 3, 3) + 0.5
    left, right = (random(2, rows), random(2, rows) + 1), (random(2, columns), random(2, columns) - 1)
    adapter = spelled(
        CONV, hada_t1=cores[0], hada_t2=cores[1], hada_w1_a=left[0], hada_w2_a=left[1], hada_w1_b=right[0],
        hada_w2_b=right[1], alpha=torch.tensor(1.0),
    )  # fmt: skip
    halves = [
        np.einsum("ijkl,ip,jr->prkl", wide(t), wide(a), wide(b)) for t, a, b in zip(cores, left, right, strict=True)
    ]
    check(base, adapter, CONV, weight + 0.5 * halves[0] * halves[1])


@pytest.mark.parametrize("whole", [True, False])
def test_lokr(base, whole):
    """W + s (w1 ⊗ w2): with two whole factors s is 1 whatever alpha says, as LyCORIS and ComfyUI have it."""
    weight = wide(base[f"{LINEAR}.weight"])
    first = random(2, 4)
    size = weight.shape[0] // 2, weight.shape[1] // 4
    if whole:
        second, scale = random(*size), 1.0
        factors = {"lokr_w2": second}
        product = wide(second)
    else:
        low = random(size[0], 3), random(3, size[1])
        factors = {"lokr_w2_a": low[0], "lokr_w2_b": low[1]}
        product, scale = wide(low[0]) @ wide(low[1]), 7 / 3
    adapter = spelled(LINEAR, lokr_w1=first, **factors, alpha=torch.tensor(7.0))
    check(base, adapter, LINEAR, weight + scale * np.kron(wide(first), product))


def test_lokr_of_a_convolution(base):
    """A whole second factor has the kernel; the Kronecker product is over the channels."""
    weight = wide(base[f"{CONV}.weight"])
    first, second = random(2, 4), random(weight.shape[0] // 2, weight.shape[1] // 4, 3, 3)
    other = spelled(
        LINEAR, lokr_w1=random(2, 4), lokr_w2_a=random(4, 3), lokr_w2_b=random(3, 8), alpha=torch.tensor(2.0)
    )
    adapter = spelled(CONV, lokr_w1=first, lokr_w2=second, alpha=torch.tensor(9.0)) | other
    change = np.einsum("ab,cdkl->acbdkl", wide(first), wide(second)).reshape(weight.shape)
    view = interpolate(base, adapter, 1.0)
    torch.testing.assert_close(view[f"{CONV}.weight"].double(), torch.from_numpy(weight + change), **EXACT)


def test_lokr_of_a_conv1d_is_refused():
    """PEFT's product of three axes is not the Kronecker product that LyCORIS has, and PEFT's is what is built in."""
    adapter = spelled("conv", lokr_w1=random(2, 2), lokr_w2=random(3, 2, 3))
    with pytest.raises(Unsupported, match="Conv1d"):
        interpolate({"conv.weight": random(6, 4, 3)}, adapter, 1.0)


def lora(base, module, rank=2):
    """Factors of LoRA for a module, as LyCORIS's LoCon has them."""
    shape = base[f"{module}.weight"].shape
    return random(rank, *shape[1:]), random(shape[0], rank, *[1] * (len(shape) - 2))


def decomposed(weight, change, magnitude, axis):
    """m · V / ‖V‖ with norms over all axes but one, in float64."""
    total = weight + change
    others = tuple(at for at in range(total.ndim) if at != axis)
    return magnitude * total / np.sqrt((total**2).sum(axis=others, keepdims=True))


@pytest.mark.parametrize("module", [LINEAR, CONV])
def test_dora_scale(base, module):
    """A magnitude for each row, (out, 1, ...), is DoRA's; the scale is alpha / rank inside the norm."""
    weight = wide(base[f"{module}.weight"])
    down, up = lora(base, module)
    magnitude = random(weight.shape[0], *[1] * (weight.ndim - 1)).abs() + 0.5
    adapter = spelled(module, lora_down__weight=down, lora_up__weight=up, dora_scale=magnitude, alpha=torch.tensor(4.0))
    change = 2 * (wide(up).reshape(weight.shape[0], -1) @ wide(down).reshape(2, -1)).reshape(weight.shape)
    check(base, adapter, module, decomposed(weight, change, wide(magnitude), 0))


def test_a_magnitude_for_each_column_is_refused(base):
    """LyCORIS's older default has (1, in, ...): the norms are of the columns, which is not DoRA."""
    down, up = lora(base, LINEAR)
    factors = {"lora_down__weight": down, "lora_up__weight": up}
    columns = spelled(LINEAR, **factors, dora_scale=torch.ones(1, down.shape[1]))
    with pytest.raises(Unsupported, match="each column"):
        interpolate(base, columns, 1.0)
    with pytest.raises(ShapeMismatch, match="each row"):
        interpolate(base, spelled(LINEAR, **factors, dora_scale=torch.ones(5)), 1.0)
    square = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    down, up = lora(base, square)
    adapter = spelled(square, lora_down__weight=down, lora_up__weight=up, dora_scale=torch.ones(1, down.shape[1]))
    with pytest.raises(Unsupported, match="each column"):
        interpolate(base, adapter, 1.0)


def test_a_pointwise_convolution_may_have_a_linear_layers_factors(base):
    """sd-scripts merges (rank, in) into (out, in, 1, 1), and the other way round: the numbers are the same."""
    down, up = lora(base, POINT)
    assert down.ndim == 4
    wanted = interpolate(base, spelled(POINT, lora_down__weight=down, lora_up__weight=up), 0.4)[f"{POINT}.weight"]
    flat = spelled(POINT, lora_down__weight=down[:, :, 0, 0], lora_up__weight=up[:, :, 0, 0])
    assert torch.equal(interpolate(base, flat, 0.4)[f"{POINT}.weight"], wanted)
    down, up = lora(base, LINEAR)
    wanted = interpolate(base, spelled(LINEAR, lora_down__weight=down, lora_up__weight=up), 0.4)[f"{LINEAR}.weight"]
    tall = spelled(LINEAR, lora_down__weight=down[:, :, None, None], lora_up__weight=up[:, :, None, None])
    assert torch.equal(interpolate(base, tall, 0.4)[f"{LINEAR}.weight"], wanted)


@pytest.mark.parametrize("alpha", [0.0, float("nan"), float("inf")])
def test_an_alpha_that_tools_read_differently_is_refused(base, alpha):
    """0 is the rank to sd-scripts and nothing to diffusers."""
    down, up = lora(base, LINEAR)
    adapter = spelled(LINEAR, lora_down__weight=down, lora_up__weight=up, alpha=torch.tensor(alpha))
    with pytest.raises(ConfigError, match="not an alpha"):
        interpolate(base, adapter, 1.0)
    with pytest.raises(ConfigError, match="not an alpha"):
        interpolate(base, adapter | spelled(LINEAR, alpha=torch.ones(2)), 1.0)


def test_rescale_gives_an_adapter_of_pefts(base):
    """Alpha folded in: the rescaled adapter at 1 is the adapter at that alpha. Without a base, names mean nothing."""
    down, up = lora(base, CONV)
    adapter = spelled(CONV, lora_down__weight=down, lora_up__weight=up, alpha=torch.tensor(5.0))
    made = rescale(adapter, 0.3, base=base)
    assert isinstance(made, Adapter) and set(made.tensors) == {f"base_model.model.{CONV}.lora_{x}.weight" for x in "AB"}
    wanted = interpolate(base, adapter, 0.3)[f"{CONV}.weight"]
    torch.testing.assert_close(interpolate(base, made, 1.0)[f"{CONV}.weight"], wanted, rtol=1e-6, atol=1e-6)
    with pytest.raises(ConfigError, match="spelling"):
        rescale(adapter, 0.3)
