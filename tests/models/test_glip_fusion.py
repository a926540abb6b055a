"""The fusion tower against plain transcriptions: nothing folded, everything at the full inner width."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertLayer

from closeness import close
from duotune.models.glip import folded_attention
from duotune.models.glip.fusion import (
    BidirectionalAttention,
    FusionTextLayer,
    FusionTokens,
    VisionLanguageFusion,
    flatten_maps,
    unflatten_maps,
)

B, N, T, DV, DL, INNER, HEADS = 2, 23, 7, 6, 10, 32, 4


def plain_attention(layer, visual, text, mask=None, tokens=None, visual_mask=None):
    """As the paper writes it: learned tokens are appended as rows, project like others, and their rows are dropped."""

    def heads(x):
        return x.view(B, -1, HEADS, INNER // HEADS).transpose(1, 2)

    def append(rows, extra):
        if extra is None:
            return rows
        return torch.cat([rows, extra if extra.dim() == 3 else extra.expand(B, -1, -1)], 1)

    tokens = tokens or FusionTokens()
    mask = torch.ones(B, T) if mask is None else mask
    v, l = append(visual, tokens.visual), append(text, tokens.text)
    added = l.shape[1] - T
    score = heads(layer.v_proj(v)) * (INNER // HEADS) ** -0.5 @ heads(layer.l_proj(l)).transpose(2, 3)
    bias = torch.where(torch.cat([mask, torch.ones(B, added)], 1) > 0, 1.0, -9e15).to(score.dtype)
    # Image queries see text rows, learned ones among them; text queries see image rows and learned visual rows.
    to_image = (score + bias[:, None, None]).softmax(-1) @ heads(layer.values_l_proj(l))
    seen = torch.ones(B, N) if visual_mask is None else visual_mask
    bias = torch.where(torch.cat([seen, torch.ones(B, v.shape[1] - N)], 1) > 0, 0.0, -9e15).to(score.dtype)
    to_text = (score.transpose(2, 3) + bias[:, None, None]).softmax(-1) @ heads(layer.values_v_proj(v))
    delta_v = layer.out_v_proj(to_image.transpose(1, 2).reshape(B, -1, INNER))
    delta_l = layer.out_l_proj(to_text.transpose(1, 2).reshape(B, -1, INNER))
    return delta_v[:, :N], delta_l[:, :T]


@pytest.fixture
def layer():
    torch.manual_seed(0)
    layer = BidirectionalAttention(DV, DL, INNER, HEADS).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    return layer


@pytest.fixture
def inputs():
    torch.manual_seed(1)
    visual = torch.randn(B, N, DV, dtype=torch.double, requires_grad=True)
    text = torch.randn(B, T, DL, dtype=torch.double, requires_grad=True)
    mask = torch.ones(B, T)
    mask[1, 4:] = 0
    return visual, text, mask


def learned(kind, batched):
    shape = (B,) if batched else ()
    make = lambda n, d: torch.randn(*shape, n, d, dtype=torch.double, requires_grad=True)
    return FusionTokens(
        visual=make(3, DV) if kind in ("visual", "both") else None,
        text=make(5, DL) if kind in ("text", "both") else None,
    )


@pytest.mark.parametrize("batched", [False, True], ids=["shared", "per_sample"])
@pytest.mark.parametrize("kind", ["none", "visual", "text", "both"])
def test_folded_attention_equals_the_plain_one(layer, inputs, kind, batched):
    visual, text, mask = inputs
    tokens = learned(kind, batched)
    ours = layer(visual, text, mask, tokens)
    theirs = plain_attention(layer, visual, text, mask, tokens)
    leaves = [visual, text, *layer.parameters()] + [t for t in (tokens.visual, tokens.text) if t is not None]
    cotangents = [torch.randn_like(t) for t in theirs]
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    for a, b in zip(torch.autograd.grad(ours, leaves, cotangents), torch.autograd.grad(theirs, leaves, cotangents)):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def compare(layer, visual, text, tokens, ours, theirs):
    """Outputs and all gradients."""
    leaves = [visual, text, *layer.parameters(), tokens.visual, tokens.text]
    cotangents = [torch.randn_like(t) for t in theirs]
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    for a, b in zip(torch.autograd.grad(ours, leaves, cotangents), torch.autograd.grad(theirs, leaves, cotangents)):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_runs_of_positions_change_nothing(layer, inputs, monkeypatch):
    """Even where the first run of a sample has nothing that text may see."""
    visual, text, mask = inputs
    seen = torch.ones(B, N)
    seen[0, :9], seen[1, 11:] = 0, 0
    monkeypatch.setattr(folded_attention, "CHUNK_BYTES", 1)
    monkeypatch.setattr(folded_attention, "SHORTEST_RUN", 5)
    tokens = learned("both", False)
    ours = layer(visual, text, mask, tokens, seen)
    compare(layer, visual, text, tokens, ours, plain_attention(layer, visual, text, mask, tokens, seen))


def test_the_form_for_dropout_computes_the_same(layer, inputs):
    visual, text, mask = inputs
    seen = torch.ones(B, N)
    seen[1, 11:] = 0
    tokens = learned("both", True)
    ours = layer(visual, text, mask, tokens, seen)
    layer.train().dropout = 1e-30  # drops nothing
    compare(layer, visual, text, tokens, ours, layer(visual, text, mask, tokens, seen))


@pytest.mark.parametrize("frozen", ["visual", "text", "tokens"])
def test_what_needs_no_gradient_changes_no_other(layer, inputs, frozen):
    visual, text, mask = inputs
    tokens = learned("both", False)
    leaves = {"visual": visual, "text": text, "tokens": tokens.visual, "more": tokens.text}
    wanted = [leaf for name, leaf in leaves.items() if name != frozen]
    cotangents = torch.randn_like(visual), torch.randn_like(text)
    layer.requires_grad_(False)
    expected = torch.autograd.grad(layer(visual, text, mask, tokens), wanted, cotangents)
    part = {name: leaf.detach() if name == frozen else leaf for name, leaf in leaves.items()}
    found = layer(part["visual"], part["text"], mask, FusionTokens(part["tokens"], part["more"]))
    for a, b in zip(torch.autograd.grad(found, wanted, cotangents), expected):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_half_precision_gradients_are_near_the_exact_ones(layer, inputs):
    visual, text, mask = (t.detach() for t in inputs)
    exact = layer.float().requires_grad_(False)
    tokens = FusionTokens(torch.randn(3, DV), torch.randn(2, DL))
    cotangents = torch.randn(B, N, DV), torch.randn(B, T, DL)

    def gradients(dtype):
        leaves = [t.to(dtype).requires_grad_() for t in (visual, text, tokens.visual, tokens.text)]
        out = exact.to(dtype)(leaves[0], leaves[1], mask, FusionTokens(leaves[2], leaves[3]))
        return torch.autograd.grad(out, leaves, [c.to(dtype) for c in cotangents])

    for a, b in zip(gradients(torch.bfloat16), gradients(torch.float32)):
        assert a.dtype == torch.bfloat16 and (a.float() - b).norm() < 0.05 * b.norm()


def test_no_mask_means_all_tokens(layer, inputs):
    visual, text, _ = inputs
    for a, b in zip(layer(visual, text), layer(visual, text, torch.ones(B, T))):
        assert close(a, b)


def test_padding_never_reaches_a_valid_output(layer, inputs):
    visual, text, mask = inputs
    noise = torch.where(mask[..., None] > 0, text, torch.randn_like(text) * 10)
    assert not torch.equal(noise, text)
    (delta_v, delta_l), (other_v, other_l) = layer(visual, text, mask), layer(visual, noise, mask)
    assert close(delta_v, other_v) and close(delta_l[mask > 0], other_l[mask > 0])


def test_which_side_learned_tokens_reach(layer, inputs):
    visual, text, mask = inputs
    base_v, base_l = layer(visual, text, mask)
    with_visual = layer(visual, text, mask, learned("visual", False))
    with_text = layer(visual, text, mask, learned("text", False))
    torch.testing.assert_close(with_visual[0], base_v)  # only text queries see visual tokens
    assert (with_visual[1] - base_l).abs().max() > 1e-2
    torch.testing.assert_close(with_text[1], base_l)  # only image queries see text tokens
    assert (with_text[0] - base_v).abs().max() > 1e-2


def test_dropout_of_attention_keeps_the_mean(layer, inputs):
    """The bias of the values is thinned with the attention: where only it is left, rows scale with their mass."""
    visual, text, mask = (t.detach() for t in inputs)
    layer.dropout = 0.5
    with torch.no_grad():
        layer.values_v_proj.weight.zero_()
        layer.values_v_proj.bias.fill_(1)
        layer.out_l_proj.weight.fill_(1 / INNER)
        layer.out_l_proj.bias.zero_()
        torch.manual_seed(0)
        mass = torch.stack([layer.train()(visual, text, mask)[1] for _ in range(400)])
    assert mass.std(0).min() > 0.05
    torch.testing.assert_close(mass.mean(0), torch.ones_like(mass[0]), rtol=0, atol=0.15)
    torch.testing.assert_close(layer.eval()(visual, text, mask)[1], torch.ones_like(mass[0]))


def test_half_precision_scores_stay_finite():
    layer = BidirectionalAttention(DV, DL, INNER, HEADS).half()
    for parameter in (*layer.v_proj.parameters(), *layer.l_proj.parameters()):
        nn.init.constant_(parameter, 20.0)
    mask = torch.tensor([[1.0] * 4 + [0] * 3] * B)
    visual, text = 20 * torch.randn(B, N, DV).half(), torch.randn(B, T, DL).half()
    scores = layer.v_proj(visual).float() @ layer.l_proj(text).float().transpose(1, 2)
    assert scores.abs().max() * 8**-0.5 > 10 * torch.finfo(torch.half).max  # far out of range
    assert all(torch.isfinite(t).all() for t in layer(visual, text, mask))


def test_residuals_start_from_normed_features():
    torch.manual_seed(0)
    fuse = VisionLanguageFusion(DV, DL, INNER, HEADS, gamma=0.25)
    nn.init.normal_(fuse.gamma_l, 0.3, 0.1)
    maps, text = [torch.randn(B, DV, 3, 4), torch.randn(B, DV, 2, 2)], torch.randn(B, T, DL)
    visual, normed = fuse.layer_norm_v(flatten_maps(maps)), fuse.layer_norm_l(text)
    delta_v, delta_l = fuse.attn(visual, normed)
    new_maps, new_text = fuse(maps, text)
    torch.testing.assert_close(flatten_maps(new_maps), visual + 0.25 * delta_v)
    torch.testing.assert_close(new_text, normed + fuse.gamma_l * delta_l)


def test_flatten_maps_is_row_major_and_level_after_level():
    maps = [torch.arange(6.0).view(1, 1, 2, 3), torch.arange(6.0, 8).view(1, 1, 1, 2)]
    flat = flatten_maps(maps)
    assert flat[0, :, 0].tolist() == list(range(8))
    for a, b in zip(unflatten_maps(flat, [(2, 3), (1, 2)]), maps):
        assert torch.equal(a, b)


def test_text_layer_equals_transformers_bert_layer():
    torch.manual_seed(0)
    config = BertConfig(hidden_size=24, num_attention_heads=3, intermediate_size=40, attn_implementation="eager")
    theirs = BertLayer(config).eval()
    ours = FusionTextLayer(24, 3, 40, config.layer_norm_eps, 0.1, 0.1).eval()
    ours.load_state_dict(theirs.state_dict())
    text, mask = torch.randn(2, 9, 24), torch.ones(2, 9)
    mask[0, 5:] = 0
    additive = (1 - mask)[:, None, None] * torch.finfo(torch.float32).min
    torch.testing.assert_close(ours(text, mask), theirs(text, additive), rtol=1e-5, atol=1e-5)


def test_prompts_are_asked_once_per_layer_with_normed_inputs(tiny_glip, tiny_config):
    asked = []

    def prompts(layer, visual, text):
        asked.append((layer, visual.shape, text.shape))
        norm = tower[layer].fusion.layer_norm_l
        unit = (text - norm.bias) / norm.weight
        torch.testing.assert_close(unit.std(-1, correction=0), torch.ones(text.shape[:2]), rtol=0, atol=1e-2)

    tower = tiny_glip.model.tower
    maps = [torch.randn(2, 32, s, s) for s in (8, 4, 2, 1, 1)]
    text = torch.randn(2, 5, 32)
    with torch.no_grad():
        plain = tower(maps, text, torch.ones(2, 5))
        asking = tower(maps, text, torch.ones(2, 5), prompts)
    assert asked == [(i, (2, 86, 32), (2, 5, 32)) for i in range(tiny_config.num_fusion_layers)]
    assert close(plain[1], asking[1])


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_checkpointing_gives_the_same_gradients(tiny_glip, mode):
    import copy

    model = copy.deepcopy(tiny_glip)
    for module in model.modules():  # dropout off, so that the two runs can be compared
        for name in ("dropout", "attention_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    tower = model.model.tower.train(mode == "train")
    maps = [torch.randn(1, 32, s, s, requires_grad=True) for s in (8, 4, 2, 1, 1)]
    text, token = torch.randn(1, 5, 32), torch.randn(2, 32, requires_grad=True)
    counted = []
    tower[0].image.register_forward_pre_hook(lambda *_: counted.append(1))

    def gradients():
        maps_out, text_out = tower(maps, text, None, lambda layer, v, t: FusionTokens(visual=token))
        return torch.autograd.grad(text_out.sum() + sum(m.sum() for m in maps_out), [token, *maps])

    expected = gradients()
    assert len(counted) == 1
    model.gradient_checkpointing_enable({"use_reentrant": False})
    found = gradients()
    assert len(counted) == 3  # forward, and again in the backward pass
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_checkpointing_repeats_no_convolution_below_the_first_gradient(tiny_glip):
    """Tokens that text alone sees leave the first block's maps without a gradient."""
    import copy

    model = copy.deepcopy(tiny_glip).requires_grad_(False)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    tower, counted = model.model.tower, []
    for layer, block in enumerate(tower.blocks):
        block.image.register_forward_pre_hook(lambda *_, layer=layer: counted.append(layer))
    maps, token = [torch.randn(1, 32, s, s) for s in (8, 4, 2, 1, 1)], torch.randn(2, 32, requires_grad=True)
    maps_out, text_out = tower(maps, torch.randn(1, 5, 32), None, lambda layer, v, t: FusionTokens(visual=token))
    (text_out.sum() + sum(m.sum() for m in maps_out)).backward()
    assert token.grad.norm() > 0
    assert counted == [0, 1, 1]
