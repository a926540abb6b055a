"""Official checkpoints: names in bijection, conversion there and back, and what is refused."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch

from duotune.errors import ArtifactError
from duotune.models.glip import GlipConfig, GlipForObjectDetection, GlipProcessor, convert_glip_checkpoint
from duotune.models.glip.anchors import cell_anchor
from duotune.models.glip.conversion import official_name, our_name, read_checkpoint

NAMES = Path(__file__).parent / "data" / "glip_state_dicts.json.gz"


@pytest.mark.parametrize("size,parameters", [("glip_t", 231_780_222), ("glip_l", 430_422_384)])
def test_names_and_shapes_are_those_of_the_official_checkpoints(size, parameters):
    with gzip.open(NAMES) as file:
        official = {name: (tuple(shape), dtype) for name, (shape, dtype) in json.load(file)[size].items()}
    with torch.device("meta"):
        model = GlipForObjectDetection(getattr(GlipConfig, size)())
    ours = {name: (tuple(t.shape), str(t.dtype).removeprefix("torch.")) for name, t in model.state_dict().items()}
    constants = {name for name in official if our_name(name) is None}
    assert constants == {f"rpn.anchor_generator.cell_anchors.{level}" for level in range(5)}
    assert {our_name(name): entry for name, entry in official.items() if name not in constants} == ours
    assert {official_name(name): entry for name, entry in ours.items()} | {
        name: ((1, 4), "float32") for name in constants
    } == official
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.fixture
def official(tiny_glip, tiny_config):
    """The tiny model as an official checkpoint would hold it."""
    state = {official_name(name): tensor.clone() for name, tensor in tiny_glip.state_dict().items()}
    for level, stride in enumerate(tiny_config.strides):
        state[f"rpn.anchor_generator.cell_anchors.{level}"] = torch.tensor([cell_anchor(stride, 8.0)])
    return state


def save(state, path, **more):
    torch.save({"model": state, **more}, path)
    return path


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_checkpoint_becomes_the_same_model(official, tiny_glip, tiny_config, tokenizer, tmp_path, prefix):
    official["language_backbone.body.model.embeddings.position_ids"] = torch.arange(64)[None]
    state = {prefix + name: tensor for name, tensor in official.items()}
    path = save(state, tmp_path / "glip.pth", iteration=7, scheduler={"last_epoch": 3})
    out = convert_glip_checkpoint(path, tmp_path / "folder", tiny_config, tokenizer)
    assert out == tmp_path / "folder"
    model, report = GlipForObjectDetection.from_pretrained(out, output_loading_info=True)
    assert not any(report.values())
    for name, tensor in tiny_glip.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    processor = GlipProcessor.from_pretrained(out)
    assert processor.max_text_tokens == tiny_config.max_text_tokens
    assert processor.caption(["person", "hair drier"]).tokens == ((1,), (3, 4, 5))
    assert {p.name for p in tmp_path.iterdir()} == {"glip.pth", "folder"}


def test_stored_precision_can_be_chosen(official, tiny_config, tokenizer, tmp_path):
    path = save(official, tmp_path / "glip.pth")
    out = convert_glip_checkpoint(path, tmp_path / "half", tiny_config, tokenizer, dtype=torch.float16)
    state = GlipForObjectDetection.from_pretrained(out, dtype="auto").state_dict()
    assert state["head.bias0"].dtype == torch.float16
    assert state["model.vision.swin.layers.0.blocks.0.attn.relative_position_index"].dtype == torch.int64


class Harmful:
    def __reduce__(self):
        return (Path.touch, (Path(self.target),))


def test_code_in_a_checkpoint_is_not_run(official, tiny_config, tokenizer, tmp_path):
    bomb = Harmful()
    bomb.target = str(tmp_path / "ran")
    path = save(official, tmp_path / "glip.pth", extra=bomb)
    with pytest.raises(ArtifactError, match="without executing code.*it holds"):
        convert_glip_checkpoint(path, tmp_path / "folder", tiny_config, tokenizer)
    assert not (tmp_path / "ran").exists() and not (tmp_path / "folder").exists()


def test_another_architecture_is_refused_by_name(official, tiny_config, tokenizer, tmp_path):
    del official["rpn.head.bias0"]
    official["rpn.head.extra"] = torch.zeros(1)
    official["roi_heads.box.weight"] = torch.zeros(1)
    official["rpn.head.dyhead_tower.0.weight"] = torch.zeros(1)
    official["rpn.head.log_scale"] = torch.zeros(3)
    official["rpn.anchor_generator.cell_anchors.1"] += 1
    path = save(official, tmp_path / "glip.pth")
    with pytest.raises(ArtifactError) as caught:
        convert_glip_checkpoint(path, tmp_path / "folder", tiny_config, tokenizer)
    message = str(caught.value)
    assert "1 missing (rpn.head.bias0)" in message
    assert "3 unexpected (roi_heads.box.weight, rpn.head.dyhead_tower.0.weight, rpn.head.extra)" in message
    assert "rpn.head.log_scale has shape (3,), expected (1,)" in message
    assert "rpn.anchor_generator.cell_anchors.1 is" in message
    assert not (tmp_path / "folder").exists()


def test_a_model_of_another_kind_is_refused(tmp_path):
    path = save({"visual.conv1.weight": torch.zeros(2)}, tmp_path / "clip.pth")
    with pytest.raises(ArtifactError, match="no GLIP with a Swin backbone; it begins with visual.conv1.weight"):
        convert_glip_checkpoint(path, tmp_path / "folder")
    save({"backbone.body.patch_embed.proj.weight": torch.zeros(128, 3, 4, 4)}, path)
    with pytest.raises(ArtifactError, match="Swin is 128 wide; GLIP-T has 96"):
        convert_glip_checkpoint(path, tmp_path / "folder")


def test_files_that_are_no_checkpoint_are_refused(tmp_path):
    with pytest.raises(ArtifactError, match="no checkpoint at"):
        read_checkpoint(tmp_path / "missing.pth")
    (tmp_path / "page.pth").write_text("<html>not found</html>")
    with pytest.raises(ArtifactError, match="page.pth"):
        read_checkpoint(tmp_path / "page.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ArtifactError, match="dictionary of tensors"):
        read_checkpoint(tmp_path / "list.pth")
    whole = save({"rpn.head.bias0": torch.zeros(4000)}, tmp_path / "whole.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArtifactError, match="cut.pth"):
        read_checkpoint(tmp_path / "cut.pth")


def test_an_existing_folder_is_kept_unless_told(official, tiny_config, tokenizer, tmp_path):
    path, out = save(official, tmp_path / "glip.pth"), tmp_path / "folder"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    with pytest.raises(ArtifactError, match="exists already"):
        convert_glip_checkpoint(path, out, tiny_config, tokenizer)
    assert (out / "mine.txt").read_text() == "keep"
    convert_glip_checkpoint(path, out, tiny_config, tokenizer, overwrite=True)
    assert (out / "model.safetensors").is_file() and not (out / "mine.txt").exists()


def test_a_missing_tokenizer_is_named(official, tiny_config, tmp_path):
    path = save(official, tmp_path / "glip.pth")
    with pytest.raises(ArtifactError, match="BERT tokenizer.*nowhere"):
        convert_glip_checkpoint(path, tmp_path / "folder", tiny_config, tmp_path / "nowhere")


def test_a_damaged_file_is_told_as_such(tmp_path):
    (tmp_path / "cut.pth").write_bytes(b"garbage")
    with pytest.raises(ArtifactError, match="cut.pth is no PyTorch checkpoint, or a damaged one; download it again"):
        read_checkpoint(tmp_path / "cut.pth")
