"""Checkpoints with the authors' names."""

from __future__ import annotations

import pytest
import torch

from duotune.conversion.sdpt import import_sdpt
from duotune.errors import ArtifactError, ConfigError, PortError
from duotune.models.glip.conversion import official_name

NAMES = ["cat", "red square"]


def key(layer):
    return f"rpn.head.dyhead_tower.{3 * layer}.b_attn.attn.cpt_input"


def write(folder, tokens, rest=None, prefix="module."):
    state = {prefix + key(layer): value for layer, value in tokens.items()}
    state |= {prefix + key(layer).replace("input", "maskpad"): torch.zeros(1, 5) for layer in tokens}
    state |= {prefix + name: value for name, value in (rest or {}).items()}
    torch.save({"model": state, "iteration": 7}, folder / "model.pth")
    return folder / "model.pth"


@pytest.fixture
def tokens():
    generator = torch.Generator().manual_seed(0)
    return {layer: torch.rand(1, 5, 64, generator=generator) * 2 - 1 for layer in (0, 2)}


@pytest.mark.parametrize("prefix", ["module.", ""])
def test_tokens_go_to_their_layers_and_act_as_in_the_authors_code(shared_backbone, tokens, tmp_path, prefix):
    rest = {official_name(k): v for k, v in shared_backbone.model.state_dict().items() if "position_ids" not in k}
    model = import_sdpt(write(tmp_path, tokens, rest, prefix), shared_backbone, NAMES)
    assert model.method.config.visible == "text_queries" and not model.training
    assert model.method.prototypes.layers == (0, 2) and model.num_trainable_parameters() == 2 * 5 * 64
    for layer, value in tokens.items():
        assert torch.equal(model.method.prototypes(layer), value[0])


def test_other_weights_are_told(shared_backbone, tokens, tmp_path):
    name = "rpn.head.bias0"
    path = write(tmp_path, tokens, {name: shared_backbone.model.head.bias0.detach() + 1})
    with pytest.raises(ArtifactError, match="1 of 1 other weights .*first: rpn.head.bias0"):
        import_sdpt(path, shared_backbone, NAMES)
    assert import_sdpt(path, shared_backbone, NAMES, check_backbone=False).class_names == tuple(NAMES)


def test_files_that_do_not_fit(shared_backbone, tiny_clip, tokens, tmp_path):
    with pytest.raises(ArtifactError, match="no prototype tokens"):
        import_sdpt(write(tmp_path, {}, {"rpn.head.bias0": torch.zeros(1)}), shared_backbone, NAMES)
    with pytest.raises(ArtifactError, match="width 2048 .* has width 64 and layers 0 to 2"):
        import_sdpt(write(tmp_path, {0: torch.zeros(1, 5, 2048)}), shared_backbone, NAMES)
    with pytest.raises(ArtifactError, match="fusion layers .7.; .* layers 0 to 2"):
        import_sdpt(write(tmp_path, {7: torch.zeros(1, 5, 64)}), shared_backbone, NAMES)
    with pytest.raises(ArtifactError, match="different shapes"):
        import_sdpt(write(tmp_path, {0: torch.zeros(1, 5, 64), 1: torch.zeros(1, 6, 64)}), shared_backbone, NAMES)
    with pytest.raises(ArtifactError, match=r"shape \(5, 64\); expected \(1, K, e\)"):
        import_sdpt(write(tmp_path, {0: torch.zeros(5, 64)}), shared_backbone, NAMES)
    with pytest.raises(ArtifactError, match="NaN"):
        import_sdpt(write(tmp_path, {0: torch.full((1, 5, 64), torch.nan)}), shared_backbone, NAMES)
    with pytest.raises(PortError, match="sdpt needs .*fusion layers"):
        import_sdpt(write(tmp_path, tokens), tiny_clip, NAMES)


def test_a_template_and_settings_that_the_file_does_not_hold(shared_backbone, tokens, tmp_path):
    path = write(tmp_path, tokens)
    model = import_sdpt(path, shared_backbone, NAMES, template="a {} here", lr=0.5)
    assert model.method.template == "a {} here" and model.method.config.lr == 0.5
    assert model.method.caption.text.startswith("a cat here")
    with pytest.raises(ConfigError, match="visible is 'text_queries' in .*, not 'both'; leave it out"):
        import_sdpt(path, shared_backbone, NAMES, visible="both")
