"""GLIP as a Hugging Face model, at toy size."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from safetensors import safe_open

from closeness import close
from duotune.errors import ConfigError
from duotune.models.glip import FusionTokens, GlipConfig, GlipForObjectDetection, GlipModel
from duotune.models.glip.losses import assign_anchors

VOCABULARY = 10_000


def pictures(*sizes, seed=0):
    torch.manual_seed(seed)
    height, width = (max(s[i] for s in sizes) for i in (0, 1))
    batch = torch.zeros(len(sizes), 3, -(-height // 32) * 32, -(-width // 32) * 32)
    for row, (h, w) in zip(batch, sizes):
        row[:, :h, :w] = torch.randn(3, h, w)
    return batch


def captions(*lengths, width=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.zeros(len(lengths), width or max(lengths), dtype=torch.long)
    for row, length in zip(ids, lengths):
        row[:length] = torch.randint(200, VOCABULARY, (length,), generator=generator)
    return ids, (ids != 0).long()


def labels(*boxes, width=32):
    rows = torch.zeros(len(boxes), width)
    for index, row in enumerate(rows):
        row[1 + index : 3 + index] = 1
    return {"boxes": torch.tensor(boxes).float().reshape(-1, 4), "positive_map": rows}


def forward(model, *args, **kwargs):
    with torch.no_grad():
        return model(*args, **kwargs)


def test_a_batch_equals_its_images_one_by_one(tiny_glip):
    """Different picture sizes and captions. A picture alone keeps the batch's canvas: GLIP attends to padding."""
    pixels = pictures((120, 160), (90, 200), (128, 40))
    ids, mask = captions(9, 4, 13)
    goals = [labels([10, 20, 80, 90]), labels(), labels([3, 3, 30, 100], [8, 30, 35, 60])]
    together = forward(tiny_glip, pixels, ids, mask, labels=goals)
    assert together.logits.std() > 0.05
    alone = [
        forward(tiny_glip, pixels[i : i + 1], ids[i : i + 1], mask[i : i + 1], labels=goals[i : i + 1])
        for i in range(3)
    ]
    for i, single in enumerate(alone):
        length = int(mask[i].sum())
        assert single.logits.shape[2] == length
        torch.testing.assert_close(together.logits[i, :, :length], single.logits[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(together.box_deltas[i], single.box_deltas[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(together.centerness[i], single.centerness[0], rtol=1e-4, atol=1e-4)
    # Losses are averaged over the positives of the whole batch.
    positives = [int((assign_anchors(g["boxes"], list(s.anchors)) >= 0).sum()) for s, g in zip(alone, goals)]
    assert positives[1] == 0 and min(positives[0], positives[2]) > 0
    for name in ("loss_token", "loss_centerness"):
        sums = sum(s.losses[name] * max(p, 1) for s, p in zip(alone, positives))
        torch.testing.assert_close(together.losses[name], sums / sum(positives), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together.loss, sum(together.losses.values()))


@pytest.mark.parametrize("length", [11, 32], ids=["short", "full"])
def test_trimmed_text_gives_the_padded_outputs(tiny_glip, length):
    pixels, (ids, mask) = pictures((96, 64), (64, 96)), captions(length, 5, width=32)
    goals = [labels([4, 4, 60, 60]), labels([10, 10, 50, 50])]
    padded = forward(tiny_glip, pixels, ids, mask, labels=goals, trim_text=False)
    trimmed = forward(tiny_glip, pixels, ids, mask, labels=goals)
    assert padded.logits.shape[2] == 32 and trimmed.logits.shape[2] == length
    for row in range(2):
        valid = int(mask[row].sum())
        torch.testing.assert_close(trimmed.logits[row, :, :valid], padded.logits[row, :, :valid], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(trimmed.box_deltas, padded.box_deltas, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(trimmed.loss, padded.loss, rtol=1e-5, atol=1e-6)


def test_a_full_caption_trains_its_no_object_token(tiny_glip):
    """The last of max_text_tokens positions should light up on background; if it is padding nobody reads it."""
    pixels, goals = pictures((64, 64)), [labels([4, 4, 60, 60])]
    full, almost = captions(32), captions(31, width=32)
    model = copy.deepcopy(tiny_glip)

    def gradient_at_last(ids, mask):
        model.head.bias0.grad = None
        output = model(pixels, ids, mask, labels=goals, trim_text=False)
        (gradient,) = torch.autograd.grad(output.loss, output.logits)
        return gradient[0, :, 31]

    assert (gradient_at_last(*full) < 0).float().mean() > 0.8
    assert gradient_at_last(*almost).abs().max() == 0


def test_cached_encoders_give_the_same_outputs(tiny_glip):
    pixels, (ids, mask) = pictures((64, 96)), captions(7, width=12)
    expected = forward(tiny_glip, pixels, ids, mask)
    with torch.no_grad():
        maps = tiny_glip.model.encode_image(pixels)
        hidden, cut = tiny_glip.model.encode_text(ids, mask)
    found = forward(tiny_glip, feature_maps=maps, text_hidden=hidden, attention_mask=cut)
    assert hidden.shape[1] == 7
    for name in ("logits", "box_deltas", "centerness"):
        assert close(found[name], expected[name])


def test_prompts_train_through_a_frozen_model(tiny_glip, tiny_config):
    model = copy.deepcopy(tiny_glip).requires_grad_(False)
    tokens = torch.randn(tiny_config.num_fusion_layers, 3, 32, requires_grad=True)
    pixels, (ids, mask) = pictures((64, 64), (64, 64)), captions(6, 5)
    output = model(
        pixels,
        ids,
        mask,
        labels=[labels([4, 4, 60, 60])] * 2,
        fusion_prompts=lambda layer, visual, text: FusionTokens(visual=tokens[layer]),
    )
    output.loss.backward()
    assert (tokens.grad.flatten(1).norm(dim=1) > 0).all()
    assert all(p.grad is None for p in model.parameters())


def settings(model):
    found = model.config.to_diff_dict()
    found["text_config"].pop("dtype", None)  # transformers notes it while loading
    return found


def test_saved_and_loaded_it_is_the_same(tiny_glip, tiny_config, tmp_path):
    tiny_glip.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    loaded, report = GlipForObjectDetection.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert settings(loaded) == settings(tiny_glip) and not loaded.training
    for (name, a), (other, b) in zip(tiny_glip.state_dict().items(), loaded.state_dict().items()):
        assert name == other and torch.equal(a, b)
    pixels, (ids, mask) = pictures((64, 96)), captions(7)
    assert close(forward(tiny_glip, pixels, ids, mask).logits, forward(loaded, pixels, ids, mask).logits)
    base = GlipModel.from_pretrained(tmp_path)  # the part without a head, from the same folder
    assert torch.equal(base.tower[1].image.offset.weight, tiny_glip.model.tower[1].image.offset.weight)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_stored_in_half_precision_it_runs(tiny_glip, tmp_path, dtype):
    copy.deepcopy(tiny_glip).to(dtype).save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.get_tensor("head.log_scale").dtype == dtype
    pixels, (ids, mask) = pictures((64, 96)), captions(7)
    half = GlipForObjectDetection.from_pretrained(tmp_path, dtype=dtype)
    output = forward(half, pixels, ids, mask, labels=[labels([4, 4, 60, 60])])
    assert output.logits.dtype == output.loss.dtype == torch.float32
    assert all(a.dtype == torch.float32 for a in output.anchors)
    exact = forward(tiny_glip, pixels, ids, mask).logits
    assert (output.logits.float() - exact).abs().mean() < 0.1 * exact.std()
    upcast = GlipForObjectDetection.from_pretrained(tmp_path, dtype=torch.float32)
    assert forward(upcast, pixels, ids, mask).logits.dtype == torch.float32


def test_initial_values_of_a_new_model(tiny_config):
    torch.manual_seed(0)
    model = GlipForObjectDetection(tiny_config)
    fusion = model.model.tower[0].fusion
    assert torch.equal(fusion.gamma_v, torch.full((32,), 0.5)) and torch.equal(fusion.gamma_l, torch.full((32,), 0.5))
    bound = math.sqrt(6 / (32 + 64))  # xavier uniform
    assert fusion.attn.v_proj.weight.abs().max() <= bound and fusion.attn.v_proj.weight.std() > 0.5 * bound
    assert fusion.attn.v_proj.bias.abs().max() == 0
    assert model.head.bias0.item() == pytest.approx(-math.log(99))
    assert model.head.bbox_pred.weight.std().item() == pytest.approx(0.01, rel=0.3)
    assert model.model.tower[0].image.AttnConv[1].weight.std().item() == pytest.approx(0.01, rel=0.4)
    fpn = model.model.vision.fpn.fpn_inner4.weight
    assert fpn.abs().max().item() == pytest.approx((3 / fpn[0].numel()) ** 0.5, rel=0.05)
    assert all(scale.scale.item() == 1 for scale in model.head.scales) and model.head.log_scale.item() == 0
    assert model.model.vision.swin.layers[0].blocks[0].attn.qkv.weight.std().item() == pytest.approx(0.02, rel=0.1)
    # so at first every token is unlikely everywhere
    assert forward(model.eval(), pictures((64, 64)), *captions(6)).logits.sigmoid().mean().item() < 0.05


def test_training_mode_is_random_and_eval_mode_is_not(tiny_glip):
    model, inputs = copy.deepcopy(tiny_glip), (pictures((64, 64)), *captions(6))
    assert close(forward(model, *inputs).logits, forward(model, *inputs).logits)
    model.train()
    assert not close(forward(model, *inputs).logits, forward(model, *inputs).logits)


def test_mixed_precision_trains(tiny_glip):
    """Forward and backward inside autocast; deformable sampling and losses stay in float32."""
    model, inputs = copy.deepcopy(tiny_glip), (pictures((64, 64)), *captions(6))
    goals = [labels([4, 4, 40, 40])]
    exact = model(*inputs, labels=goals)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model(*inputs, labels=goals)
        mixed.loss.backward()
    assert mixed.loss.dtype == torch.float32
    torch.testing.assert_close(mixed.loss, exact.loss, rtol=0.05, atol=0)
    gradients = [p.grad for n, p in model.named_parameters() if "cls_logits" not in n]
    assert all(g is not None and torch.isfinite(g).all() for g in gradients)


def test_a_few_steps_of_training_lower_the_loss(tiny_config):
    torch.manual_seed(0)
    model = GlipForObjectDetection(tiny_config)
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
    pixels, (ids, mask) = pictures((64, 64), (64, 64)), captions(6, 6)
    goals = [labels([4, 4, 40, 40]), labels([20, 20, 60, 60])]
    losses = []
    for _ in range(12):
        optimiser.zero_grad()
        loss = model(pixels, ids, mask, labels=goals).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_inputs_that_do_not_fit_are_refused(tiny_glip):
    pixels, (ids, mask) = pictures((64, 64)), captions(6)
    with pytest.raises(ValueError, match="either pixel_values or feature_maps"):
        tiny_glip(input_ids=ids)
    with pytest.raises(ValueError, match="either input_ids or text_hidden"):
        tiny_glip(pixels)
    with pytest.raises(ValueError, match="1 images need as many captions, got 2"):
        tiny_glip(pixels, ids.repeat(2, 1))
    with pytest.raises(ValueError, match="1 images need as many labels, got 2"):
        tiny_glip(pixels, ids, mask, labels=[labels()] * 2)
    with pytest.raises(ValueError, match=r"labels of image 0.*\(2, 4\) and \(1, 32\)"):
        tiny_glip(pixels, ids, mask, labels=[{"boxes": torch.zeros(2, 4), "positive_map": torch.zeros(1, 32)}])


def test_all_faults_of_a_configuration_are_named_at_once():
    with pytest.raises(ConfigError) as caught:
        GlipConfig.tiny(depths=(1, 2), fusion_dim=65, group_norm_groups=5, max_text_tokens=1000)
    assert len(caught.value.faults) == 4
    assert "fusion_dim 65" in str(caught.value)


def test_presets():
    assert GlipConfig.glip_t().to_dict() == GlipConfig().to_dict()
    large = GlipConfig.glip_l()
    assert (large.embed_dim, large.window_size, large.num_fusion_layers, large.depths) == (192, 12, 8, [2, 2, 18, 2])
    assert GlipConfig.from_dict(large.to_dict()).to_dict() == large.to_dict()
    assert GlipConfig.tiny(num_fusion_layers=5).num_fusion_layers == 5
