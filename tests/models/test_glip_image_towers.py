"""Swin, feature pyramid and dynamic convolution: what the numbers of the full model do not single out."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from closeness import close
from duotune.models.glip.deform_conv import deform_conv2d
from duotune.models.glip.dynamic_conv import DynamicConv, DynamicRelu, reread
from duotune.models.glip.fpn import GlipFpn, drop_block
from duotune.models.glip.swin import (
    GlipSwin,
    SwinBlock,
    WindowAttention,
    drop_path,
    relative_position_index,
    shift_mask,
    window_merge,
    window_partition,
)


def test_windows_come_back():
    x = torch.arange(2 * 6 * 9 * 1.0).view(2, 6, 9, 1)
    windows = window_partition(x, 3)
    assert windows.shape == (2, 6, 9, 1)
    assert torch.equal(windows[0, 1, :, 0], x[0, :3, 3:6, 0].flatten())
    assert torch.equal(window_merge(windows, 3, 6, 9), x)


@pytest.mark.parametrize("height,width,window", [(8, 12, 4), (7, 7, 7), (6, 9, 3)])
def test_shift_mask_forbids_what_was_not_adjacent(height, width, window):
    """Rolling brings the first rows and columns behind the last; what was rolled meets only what was rolled too."""
    shift = window // 2
    rows = torch.arange(height).roll(-shift)[:, None].expand(height, width)
    cols = torch.arange(width).roll(-shift)[None].expand(height, width)
    rolled = window_partition((torch.stack([rows, cols], -1) < shift)[None], window)[0]
    mask = shift_mask(height, width, window, shift, torch.device("cpu"))
    assert torch.equal(mask == 0, (rolled[:, :, None] == rolled[:, None]).all(-1))
    assert set(mask.unique().tolist()) == {0.0, -100.0}


def test_relative_position_index_by_hand():
    index = relative_position_index(2)
    # positions (0,0) (0,1) (1,0) (1,1); row of (dy + 1) * 3 + (dx + 1)
    assert index.tolist() == [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]


@pytest.mark.parametrize("batched", [False, True])
def test_window_tokens_are_further_keys_and_values(batched):
    torch.manual_seed(0)
    layer = WindowAttention(12, 2, 3)
    torch.nn.init.normal_(layer.relative_position_bias_table)
    x, tokens = torch.randn(2, 5, 4, 12), torch.randn(2 if batched else 1, 3, 12)
    mask = torch.where(torch.rand(5, 4, 4) < 0.3, -100.0, 0.0)
    rows = torch.cat([x, tokens[:, None].expand(2, 5, 3, 12)], 2)
    q, k, v = layer.qkv(rows).view(2, 5, 7, 3, 3, 4).permute(3, 0, 1, 4, 2, 5)
    bias = layer.relative_position_bias_table[layer.relative_position_index].permute(2, 0, 1)
    scores = q @ k.transpose(-1, -2) / 2
    scores[..., :4, :4] += bias + mask[None, :, None]
    expected = layer.proj((scores.softmax(-1) @ v).transpose(2, 3).reshape(2, 5, 7, 12))[:, :, :4]
    torch.testing.assert_close(layer(x, mask, tokens), expected)


def test_swin_asks_for_tokens_before_every_block():
    torch.manual_seed(0)
    swin = GlipSwin(8, [1, 2, 1, 1], [1, 2, 2, 2], window_size=3).eval()
    x = torch.randn(1, 3, 50, 70)
    asked = []

    def tokens(stage, block, hidden):
        asked.append((stage, block, tuple(hidden.shape)))
        return torch.ones(2, hidden.shape[-1]) * 3 * torch.arange(hidden.shape[-1]) if stage == 2 else None

    with torch.no_grad():
        plain, prompted = swin(x), swin(x, tokens)
    shapes = [(1, 13, 18, 8), (1, 7, 9, 16), (1, 7, 9, 16), (1, 4, 5, 32), (1, 2, 3, 64)]
    assert asked == [(s, b, shape) for (s, b), shape in zip([(0, 0), (1, 0), (1, 1), (2, 0), (3, 0)], shapes)]
    assert [tuple(m.shape) for m in plain] == [(1, 8, 13, 18), (1, 16, 7, 9), (1, 32, 4, 5), (1, 64, 2, 3)]
    for stage in (0, 1):
        assert close(plain[stage], prompted[stage])
    for stage in (2, 3):
        assert (plain[stage] - prompted[stage]).abs().max() > 1e-3


def test_padding_of_a_window_takes_part_as_keys():
    """A 3x3 map in 4x4 windows attends to seven padded positions, whose keys are the bias of qkv."""
    torch.manual_seed(0)
    block = SwinBlock(8, 2, window=4, shift=0, mlp_ratio=2, drop_path_prob=0)
    x = torch.randn(1, 3, 3, 8)
    padded = torch.zeros(1, 4, 4, 8)
    padded[:, :3, :3] = block.norm1(x)
    attended = block.attn(padded.view(1, 1, 16, 8)).view(1, 4, 4, 8)[:, :3, :3]
    hidden = x + attended
    expected = hidden + block.mlp(block.norm2(hidden))
    torch.testing.assert_close(block(x, torch.zeros(1, 16, 16)), expected)


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    x = torch.ones(4000, 2, 3)
    out = drop_path(x, 0.25, training=True)
    values = out.flatten(1)
    assert torch.equal(values.amin(1), values.amax(1))
    assert out.mean().item() == pytest.approx(1, abs=0.05)
    assert (out == 0).float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert drop_path(x, 0.25, training=False) is x


def test_drop_block_drops_squares_and_keeps_the_mean():
    torch.manual_seed(0)
    x = torch.ones(8, 5, 40, 40)
    out = drop_block(x, 0.3, 3, training=True)
    assert out.mean().item() == pytest.approx(1, abs=1e-4)
    dropped = out[:, 0] == 0
    assert 0.15 < dropped.float().mean() < 0.35
    assert torch.equal(out[:, 0], out[:, 4])
    # every dropped cell lies in a square of dropped cells (cut at the border)
    whole = F.pad(dropped.float(), (2, 2, 2, 2), value=1.0).unfold(1, 3, 1).unfold(2, 3, 1).amin((-1, -2))
    covered = F.max_pool2d(whole[:, None], 3, stride=1)[:, 0]
    assert torch.equal(covered > 0, dropped)
    assert drop_block(x, 0.3, 3, training=False) is x


def test_pyramid_sizes_and_that_p6_comes_from_p5():
    torch.manual_seed(0)
    fpn = GlipFpn([4, 8, 16], 6, drop_block_prob=0.3).eval()
    maps = [torch.randn(1, 4, 13, 18), torch.randn(1, 8, 7, 9), torch.randn(1, 16, 4, 5)]
    p3, p4, p5, p6, p7 = fpn(maps)
    sizes = [tuple(p.shape[-2:]) for p in (p3, p4, p5, p6, p7)]
    assert sizes == [(13, 18), (7, 9), (4, 5), (2, 3), (1, 2)]
    torch.testing.assert_close(p6, fpn.top_blocks.p6(p5))
    torch.testing.assert_close(p7, fpn.top_blocks.p7(p6.relu()))
    assert not torch.equal(fpn.train()(maps)[0], p3)  # DropBlock


def test_dynamic_relu_by_its_formula():
    torch.manual_seed(0)
    layer, x = DynamicRelu(8), torch.randn(2, 8, 3, 4)
    with torch.no_grad():
        layer.fc[2].weight.mul_(5)
    theta = (F.relu6(layer.fc(x.mean((2, 3))) + 3) / 6).view(2, 4, 8, 1, 1)
    a1, b1, a2, b2 = (theta[:, 0] - 0.5) * 2 + 1, theta[:, 1] - 0.5, (theta[:, 2] - 0.5) * 2, theta[:, 3] - 0.5
    torch.testing.assert_close(layer(x), torch.max(x * a1 + b1, x * a2 + b2))


def test_offsets_are_reread_as_a_flat_buffer_per_sample():
    x = torch.arange(2 * 3 * 4 * 4.0).view(2, 3, 4, 4)
    out = reread(x, 2, 2)
    assert out.shape == (2, 3, 2, 2)
    assert out[0].flatten().tolist() == list(range(12))
    assert out[1].flatten().tolist() == list(range(48, 60))
    # and not from whatever memory a channels-last tensor has
    assert torch.equal(reread(x.contiguous(memory_format=torch.channels_last), 2, 2), out)


def test_dynamic_convolution_against_a_transcription():
    torch.manual_seed(0)
    layer = DynamicConv(8, groups=2)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    maps = [torch.randn(2, 8, h, w) for h, w in ((7, 6), (4, 3), (2, 2))]

    def convolve(place, x, offset, mask, stride=1):
        part = layer.DyConv[place]
        out = deform_conv2d(x, offset, mask, part.conv.weight, part.conv.bias, stride, 1, backend="torch")
        return F.group_norm(out, 2, part.bn.weight, part.bn.bias, 1e-5)

    for level, ours in enumerate(layer(maps)):
        x = maps[level]
        planes = layer.offset(x)
        offset, mask = planes[:, :18], planes[:, 18:].sigmoid()
        branches = [convolve(1, x, offset, mask)]
        if level:
            branches.append(convolve(2, maps[level - 1], offset, mask, stride=2))
        if level < 2:
            h, w = maps[level + 1].shape[2:]
            small_offset = torch.stack([o.reshape(-1)[: 18 * h * w].view(18, h, w) for o in offset])
            small_mask = torch.stack([m.reshape(-1)[: 9 * h * w].view(9, h, w) for m in mask])
            small = convolve(0, maps[level + 1], small_offset, small_mask)
            branches.append(F.interpolate(small, size=x.shape[2:], mode="bilinear", align_corners=True))
        conv = layer.AttnConv[1]
        gates = [
            F.relu6(F.relu(F.conv2d(b.mean((2, 3), keepdim=True), conv.weight, conv.bias)) + 3) / 6 for b in branches
        ]
        mean = torch.stack([gate * branch for gate, branch in zip(gates, branches)]).mean(0)
        torch.testing.assert_close(ours, layer.relu(mean), rtol=1e-4, atol=1e-5)
