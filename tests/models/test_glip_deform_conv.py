"""Modulated deformable convolution against a loop over every sample, in float64."""

from __future__ import annotations

import math
import sys
import types

import pytest
import torch

from closeness import close
from duotune.models.glip import deform_conv
from duotune.models.glip.deform_conv import ModulatedDeformConv, deform_conv2d


def naive(x, offset, mask, weight, bias, stride, padding):
    """One sample at a time, each of the four cells looked up by hand."""
    batch, channels, height, width = x.shape
    out_channels, _, kernel_height, kernel_width = weight.shape
    _, _, out_height, out_width = mask.shape

    def cell(b, row, col):
        inside = 0 <= row < height and 0 <= col < width
        return x[b, :, row, col] if inside else torch.zeros(channels, dtype=x.dtype)

    rows = []
    for b in range(batch):
        for i in range(out_height):
            for j in range(out_width):
                total = bias.clone()
                for k in range(kernel_height * kernel_width):
                    y = i * stride - padding + k // kernel_width + offset[b, 2 * k, i, j]
                    z = j * stride - padding + k % kernel_width + offset[b, 2 * k + 1, i, j]
                    if not (-1 < y < height and -1 < z < width):
                        continue
                    top, left = math.floor(y.item()), math.floor(z.item())
                    fy, fz = y - top, z - left
                    value = (
                        (1 - fy) * (1 - fz) * cell(b, top, left)
                        + (1 - fy) * fz * cell(b, top, left + 1)
                        + fy * (1 - fz) * cell(b, top + 1, left)
                        + fy * fz * cell(b, top + 1, left + 1)
                    )
                    kernel = weight[:, :, k // kernel_width, k % kernel_width]
                    total = total + kernel @ (value * mask[b, k, i, j])
                rows.append(total)
    return torch.stack(rows).view(batch, out_height, out_width, out_channels).permute(0, 3, 1, 2)


def case(stride=1, padding=1, kernel=(3, 3), size=(5, 6), batch=2, spread=2.0, seed=0):
    torch.manual_seed(seed)
    height, width = size
    out = [(n + 2 * padding - k) // stride + 1 for n, k in zip(size, kernel)]
    taps = kernel[0] * kernel[1]
    tensors = {
        "x": torch.randn(batch, 4, height, width),
        "offset": torch.randn(batch, 2 * taps, *out) * spread,
        "mask": torch.rand(batch, taps, *out),
        "weight": torch.randn(3, 4, *kernel),
        "bias": torch.randn(3),
    }
    return {name: t.double().requires_grad_() for name, t in tensors.items()}


@pytest.mark.parametrize("backend", ["torch", "sampled"])
@pytest.mark.parametrize("stride,padding,kernel,size", [
    (1, 1, (3, 3), (5, 6)),
    (2, 1, (3, 3), (5, 6)),
    (2, 1, (3, 3), (1, 1)),
    (1, 0, (1, 3), (4, 3)),
])  # fmt: skip
def test_equals_a_loop_with_gradients(stride, padding, kernel, size, backend):
    tensors = case(stride, padding, kernel, size)
    ours = deform_conv2d(**tensors, stride=stride, padding=padding, backend=backend)
    theirs = naive(**tensors, stride=stride, padding=padding)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    cotangent = torch.randn_like(theirs)
    ours = torch.autograd.grad(ours, list(tensors.values()), cotangent)
    theirs = torch.autograd.grad(theirs, list(tensors.values()), cotangent)
    for name, a, b in zip(tensors, ours, theirs):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11, msg=lambda m, name=name: f"{name}: {m}")


def test_gradcheck():
    tensors = case(size=(3, 4), batch=1, spread=0.7, seed=3)
    # Bilinear sampling has kinks at whole cells; finite differences must not step over them.
    with torch.no_grad():
        fraction = tensors["offset"] - tensors["offset"].floor()
        tensors["offset"] += torch.where(fraction < 0.05, 0.1, 0.0) - torch.where(fraction > 0.95, 0.1, 0.0)
    assert torch.autograd.gradcheck(
        lambda *t: deform_conv2d(*t, stride=1, padding=1, backend="torch"), list(tensors.values())
    )


@pytest.mark.parametrize("backend", ["torch", "sampled"])
@pytest.mark.parametrize("frozen", ["x", "offset", "mask", "weight"])
def test_gradients_of_the_others_do_not_depend_on_what_is_frozen(frozen, backend):
    tensors = case()
    full = deform_conv2d(**tensors, padding=1, backend=backend)
    cotangent = torch.randn_like(full)
    wanted = [name for name in tensors if name != frozen]
    expected = torch.autograd.grad(full, [tensors[name] for name in wanted], cotangent)
    part = deform_conv2d(**{**tensors, frozen: tensors[frozen].detach()}, padding=1, backend=backend)
    found = torch.autograd.grad(part, [tensors[name] for name in wanted], cotangent)
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_chunks_change_nothing(monkeypatch):
    tensors = case(size=(7, 9))
    whole = deform_conv2d(**tensors, padding=1, backend="torch")
    cotangent = torch.randn_like(whole)
    expected = torch.autograd.grad(whole, list(tensors.values()), cotangent)
    monkeypatch.setattr(deform_conv, "CHUNK_BYTES", 9 * 4 * 8 * 5)  # five output positions at a time
    parts = deform_conv2d(**tensors, padding=1, backend="torch")
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-12)
    for a, b in zip(torch.autograd.grad(parts, list(tensors.values()), cotangent), expected):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_zero_offsets_are_a_plain_convolution():
    x, weight = torch.randn(2, 5, 9, 8), torch.randn(6, 5, 3, 3)
    layer = ModulatedDeformConv(5, 6, stride=2)
    with torch.no_grad():
        layer.weight.copy_(weight)
    out = layer(x, torch.zeros(2, 18, 5, 4), torch.ones(2, 9, 5, 4))
    torch.testing.assert_close(out, torch.nn.functional.conv2d(x, weight, stride=2, padding=1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["torch", "sampled"])
def test_samples_far_outside_count_as_zero(backend):
    x, weight = torch.randn(1, 4, 5, 5), torch.randn(3, 4, 3, 3)
    offset = torch.full((1, 18, 5, 5), 1e30)
    offset[:, ::2] = -1e30
    out = deform_conv2d(x, offset, torch.ones(1, 9, 5, 5), weight, torch.ones(3), padding=1, backend=backend)
    torch.testing.assert_close(out, torch.ones_like(out))


def test_half_precision_input_is_sampled_in_float32():
    torch.manual_seed(0)
    layer, x = ModulatedDeformConv(4, 4), torch.randn(1, 4, 6, 6)
    offset, mask = torch.randn(1, 18, 6, 6), torch.rand(1, 9, 6, 6)
    expected = layer(x.bfloat16().float(), offset, mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(x.bfloat16(), offset, mask)
    assert out.dtype == torch.float32
    assert close(out, expected)


def test_bfloat16_weights_are_multiplied_in_bfloat16_with_near_gradients():
    """Against the same rounded weights in float32: columns are rounded, positions are not."""
    torch.manual_seed(0)
    exact, x = ModulatedDeformConv(16, 16), torch.randn(1, 16, 6, 6)
    exact.weight.data = exact.weight.data.bfloat16().float()
    half = ModulatedDeformConv(16, 16)
    half.load_state_dict(exact.state_dict())
    tensors = [x.bfloat16().float(), torch.randn(1, 18, 6, 6), torch.rand(1, 9, 6, 6)]
    cotangent = torch.randn(1, 16, 6, 6)
    found = []
    for layer in (half.bfloat16(), exact):
        leaves = [t.clone().requires_grad_() for t in tensors] + list(layer.parameters())
        out = layer(*leaves[:3])
        assert out.dtype == torch.float32
        found.append([out, *torch.autograd.grad(out, leaves, cotangent)])
    for a, b in zip(*found):
        assert 0 < (a.float() - b).norm() < 0.01 * b.norm()


@pytest.mark.parametrize("name", ["offset", "mask", "weight"])
def test_sizes_that_do_not_fit_are_refused(name):
    tensors = {n: t.detach() for n, t in case().items()}
    tensors[name] = tensors[name][:, :-1]
    with pytest.raises(ValueError, match=name):
        deform_conv2d(**tensors, padding=1)


def test_torchvision_operator_gives_the_same():
    pytest.importorskip("torchvision")
    tensors = case(stride=2, size=(8, 7))
    ours = deform_conv2d(**tensors, stride=2, padding=1, backend="torch")
    theirs = deform_conv2d(**tensors, stride=2, padding=1, backend="torchvision")
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("stride, size", [(1, (5, 7)), (2, (8, 6)), (1, (1, 1))])
def test_small_maps_of_a_batch_are_sampled_together(monkeypatch, stride, size):
    results = []
    for limit in (0, 1 << 30):
        monkeypatch.setattr(deform_conv, "JOINED_BYTES", limit)
        tensors = case(stride=stride, size=size)
        assert len(tensors["x"]) > 1
        out = deform_conv2d(**tensors, stride=stride, padding=1, backend="torch")
        (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
        results.append([out.detach(), *(t.grad for t in tensors.values())])
    for apart, together in zip(*results):
        torch.testing.assert_close(together, apart, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "settings",
    [{}, {"stride": 2, "size": (8, 7)}, {"kernel": (1, 3), "padding": 0}, {"size": (1, 1)}, {"spread": 1e4}],
    ids=["same", "strided", "flat-kernel", "one-cell", "far-away"],
)
def test_the_plain_way_gives_the_same(settings):
    """Output and all gradients; 1e-9, because places go through grid_sample's -1..1 and back."""
    stride, padding = settings.get("stride", 1), settings.get("padding", 1)
    found = []
    for backend in ("torch", "plain"):
        tensors = case(**settings)
        out = deform_conv2d(**tensors, stride=stride, padding=padding, backend=backend)
        grads = torch.autograd.grad((out * out.detach().sin()).sum(), list(tensors.values()))
        found.append([out.detach(), *grads])
    for fast, plain in zip(*found):
        torch.testing.assert_close(plain, fast, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backend", ["plain", "sampled"])
def test_the_plain_way_multiplies_in_the_precision_of_the_weights(backend):
    tensors = {name: t.detach().float() for name, t in case().items()}
    tensors["weight"], tensors["bias"] = tensors["weight"].bfloat16(), tensors["bias"].bfloat16()
    fast, plain = (deform_conv2d(**tensors, padding=1, backend=backend) for backend in ("torch", backend))
    assert fast.dtype == plain.dtype == torch.float32
    assert (fast - plain).norm() < 0.01 * fast.norm()


def test_the_operator_of_torchvision_is_taken_where_it_has_a_kernel(monkeypatch):
    """A stand-in written as a loop: what it is given is what torchvision's takes."""

    def stand_in(input, offset, weight, bias=None, stride=(1, 1), padding=(0, 0), dilation=(1, 1), mask=None):
        calls.append(weight.dtype)
        assert dilation == (1, 1)
        return naive(input, offset, mask, weight, bias, stride, padding)

    calls: list[torch.dtype] = []
    package, ops = types.ModuleType("torchvision"), types.ModuleType("torchvision.ops")
    package.ops, ops.deform_conv2d = ops, stand_in
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.ops", ops)
    deform_conv.torchvision_operator.cache_clear()
    try:
        tensors = case(stride=2)
        expected = deform_conv2d(**tensors, stride=2, padding=1)
        assert not calls, "not on a CPU"
        monkeypatch.setattr(deform_conv, "OPERATOR_DEVICES", ("cuda", "cpu"))
        found = deform_conv2d(**tensors, stride=2, padding=1)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        cotangent = torch.randn_like(found)
        for a, b in zip(*(torch.autograd.grad(out, list(tensors.values()), cotangent) for out in (found, expected))):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)
        assert calls == [torch.float64]
    finally:
        deform_conv.torchvision_operator.cache_clear()
