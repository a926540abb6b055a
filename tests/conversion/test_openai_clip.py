import gzip
import json

import pytest
import torch
from tiny_openai import BPE, OpenAIClip, Sizes, images, openai_state_dict

from duotune.backbones import load_backbone
from duotune.conversion import convert_openai_clip
from duotune.errors import ArtifactError, ConfigError

OTHER = Sizes(width=128, layers=3, patch=4, image=20, text_width=192, text_layers=1, context=9, embed=48)
TEXTS = ["a photo of a cat.", "Red car!", "tree", "?"]


def ids_for(folder, texts, context):
    """Ids padded with 0, as OpenAI's own tokenize does."""
    from transformers import CLIPTokenizer

    ids = torch.zeros(len(texts), context, dtype=torch.long)
    for row, found in zip(ids, CLIPTokenizer.from_pretrained(folder)(texts).input_ids):
        row[: len(found)] = torch.tensor(found)
    return ids


def save_plain(sizes, path):
    torch.save(openai_state_dict(sizes), path)


def save_half(sizes, path):
    """The mixture of precisions of the published files, with the three extra numbers they hold."""
    state = {k: t if "ln_" in k else t.half() for k, t in openai_state_dict(sizes).items()}
    extra = {"input_resolution": sizes.image, "context_length": sizes.context, "vocab_size": sizes.vocab}
    torch.save({"state_dict": {**state, **{k: torch.tensor(v) for k, v in extra.items()}}}, path)


def save_torchscript(sizes, path):
    example = images(2, sizes), torch.ones(2, sizes.context, dtype=torch.long)
    torch.jit.save(torch.jit.trace(OpenAIClip(sizes), example), path)


@pytest.mark.parametrize("save", [save_plain, save_half, save_torchscript], ids=lambda f: f.__name__)
@pytest.mark.parametrize("sizes", [Sizes(), OTHER], ids=["one", "other"])
def test_features_are_those_of_the_original(tmp_path, sizes, save):
    from transformers import CLIPModel

    save(sizes, tmp_path / "clip.pt")
    out = convert_openai_clip(tmp_path / "clip.pt", tmp_path / "hf", bpe=BPE)
    model, report = CLIPModel.from_pretrained(out, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]

    pixels, ids = images(4, sizes), ids_for(out, TEXTS, sizes.context)
    with torch.no_grad():
        image, text = OpenAIClip(sizes)(pixels, ids)
        got = model.eval()(input_ids=ids, pixel_values=pixels)
        scores = 20 * torch.nn.functional.normalize(image) @ torch.nn.functional.normalize(text).T
    torch.testing.assert_close(got.image_embeds, torch.nn.functional.normalize(image), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got.text_embeds, torch.nn.functional.normalize(text), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got.logits_per_image, scores, rtol=1e-3, atol=1e-3)  # log(20) is stored in half
    assert text.std(dim=0).mean() > 0.1 and image.std(dim=0).mean() > 0.1  # the features differ at all


def test_loads_as_a_backbone_with_the_sizes_of_the_file(tmp_path):
    save_half(OTHER, tmp_path / "clip.pt")
    convert_openai_clip(tmp_path / "clip.pt", tmp_path / "hf", bpe=BPE)
    backbone = load_backbone(str(tmp_path / "hf"), device="cpu")
    assert (backbone.text_width, backbone.vision_width, backbone.embed_dim) == (192, 128, 48)
    assert (backbone.text_layers, backbone.vision_layers) == (1, 3)
    assert (backbone.max_text_tokens, backbone.image_size) == (9, 20)
    assert backbone.model.config.vision_config.num_attention_heads == 2
    assert backbone.model.config.text_config.num_attention_heads == 3
    pixels, ids = images(4, OTHER), ids_for(tmp_path / "hf", TEXTS, OTHER.context)
    with torch.no_grad():
        image, text = OpenAIClip(OTHER)(pixels, ids)
        torch.testing.assert_close(backbone.encode_image(pixels), image, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(backbone.encode_text(TEXTS), text, rtol=1e-5, atol=1e-5)
    processor = json.loads((tmp_path / "hf/preprocessor_config.json").read_text())
    assert processor["size"] == {"shortest_edge": 20} and processor["crop_size"] == {"height": 20, "width": 20}


def test_vocabulary(tmp_path):
    from transformers import AutoTokenizer

    save_plain(Sizes(), tmp_path / "clip.pt")
    (tmp_path / "bpe.gz").write_bytes(gzip.compress(BPE.read_bytes()))
    convert_openai_clip(tmp_path / "clip.pt", tmp_path / "hf", bpe=tmp_path / "bpe.gz")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    merges = BPE.read_text().split("\n")[1:]
    start, end = Sizes().vocab - 2, Sizes().vocab - 1
    # ids 0-255 are bytes, "!" first; 256-511 bytes at a word's end ("a" is 320 in every CLIP); then one per merge
    assert tokenizer("a !").input_ids == [start, 320, 256, end]
    assert tokenizer("Photo").input_ids == [start, 512 + merges.index("phot o</w>"), end]
    assert tokenizer("phoz").input_ids == [start, 512 + merges.index("ph o"), 256 + ord("z") - ord("!"), end]
    assert tokenizer("é").input_ids == [start, 94 + 0xC3 - 0xA1 - 1, 256 + 94 + 0xA9 - 0xA1, end]
    assert tokenizer.model_max_length == 12

    convert_openai_clip(tmp_path / "clip.pt", tmp_path / "again", tokenizer=tmp_path / "hf")
    assert AutoTokenizer.from_pretrained(tmp_path / "again")(TEXTS).input_ids == tokenizer(TEXTS).input_ids


def test_precision_of_the_written_weights(tmp_path):
    from safetensors.torch import load_file

    save_half(Sizes(), tmp_path / "clip.pt")
    for dtype in ("float32", "float16"):
        convert_openai_clip(tmp_path / "clip.pt", tmp_path / dtype, bpe=BPE, dtype=dtype)
    single, half = (load_file(tmp_path / d / "model.safetensors") for d in ("float32", "float16"))
    assert {t.dtype for t in half.values()} == {torch.float16}
    assert all(torch.equal(single[k], half[k].float()) for k in single)  # the file's weights are half-precision ones


def fault(state, sizes):
    state = dict(state)
    yield "visual.layer1.0.conv1.weight", {"visual.layer1.0.conv1.weight": torch.ones(1), **state}, "ResNet"
    lacking = {k: v for k, v in state.items() if k != "visual.transformer.resblocks.1.ln_2.bias"}
    yield "one missing", lacking, r"lacks 1 of .*visual\.transformer\.resblocks\.1\.ln_2\.bias"
    yield "foreign weight", {**state, "adapter.weight": torch.ones(2)}, "no place for: adapter.weight"
    yield "other model", {"fc.weight": torch.ones(2, 2)}, "lacks 8 of the tensors of OpenAI's CLIP"
    cut = {**state, "visual.positional_embedding": state["visual.positional_embedding"][:-1]}
    yield "no grid", cut, "square grid"


@pytest.mark.parametrize("number", range(5))
def test_foreign_files_are_named_and_leave_nothing(tmp_path, number):
    _, state, message = list(fault(openai_state_dict(), Sizes()))[number]
    torch.save(state, tmp_path / "clip.pt")
    with pytest.raises(ArtifactError, match=message):
        convert_openai_clip(tmp_path / "clip.pt", tmp_path / "hf", bpe=BPE)
    assert [p.name for p in tmp_path.iterdir()] == ["clip.pt"]


def test_bad_arguments(tmp_path):
    save_plain(Sizes(), tmp_path / "clip.pt")
    with pytest.raises(ConfigError, match="either bpe .* or tokenizer"):
        convert_openai_clip(tmp_path / "clip.pt", tmp_path / "hf")
    with pytest.raises(ConfigError, match="int8"):
        convert_openai_clip(tmp_path / "clip.pt", tmp_path / "hf", bpe=BPE, dtype="int8")
    (tmp_path / "short.txt").write_text("\n".join(BPE.read_text().split("\n")[:10]))
    with pytest.raises(ArtifactError, match="gives 9 merges, .* needs 46"):
        convert_openai_clip(tmp_path / "clip.pt", tmp_path / "hf", bpe=tmp_path / "short.txt")
    with pytest.raises(ArtifactError, match="no folder"):
        convert_openai_clip(tmp_path / "clip.pt", tmp_path / "hf", tokenizer=tmp_path / "absent")
    torch.save({"epoch": 3}, tmp_path / "none.pt")
    with pytest.raises(ArtifactError, match="no named tensors"):
        convert_openai_clip(tmp_path / "none.pt", tmp_path / "hf", bpe=BPE)
    assert not (tmp_path / "hf").exists() and not list(tmp_path.glob(".hf*"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full/keep.txt").write_text("mine")
    with pytest.raises(ArtifactError, match="exists already"):
        convert_openai_clip(tmp_path / "clip.pt", tmp_path / "full", bpe=BPE)
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["keep.txt"]


def test_a_tokenizer_of_another_model_is_refused(tmp_path, tiny_clip_folder):
    save_plain(Sizes(), tmp_path / "clip.pt")
    with pytest.raises(ArtifactError, match="the vocabulary of .* the model has 560 and 559"):
        convert_openai_clip(tmp_path / "clip.pt", tmp_path / "hf", tokenizer=tiny_clip_folder)
    assert not (tmp_path / "hf").exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    save_plain(Sizes(), tmp_path / "clip.pt")
    with pytest.raises(ArtifactError, match="cannot write .*clip.pt/hf"):
        convert_openai_clip(tmp_path / "clip.pt", tmp_path / "clip.pt" / "hf", bpe=BPE)
