"""Folders of models that are broken, incomplete or mixed: one line that names the folder and the file."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import duotune
from duotune.backbones.folders import guarded
from duotune.errors import ConfigError, DataError, DuotuneError

ASSETS = Path(duotune.__file__).parent / "assets"
KINDS = ("clip", "glip", "grounding_dino")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, request) -> dict[str, Path]:
    sys.path.insert(0, str(Path(__file__).parents[1] / "detection"))
    try:
        from tiny_grounding_dino import write_folder
    finally:
        sys.path.pop(0)
    dino = write_folder(tmp_path_factory.mktemp("folders") / "dino")
    return {"clip": ASSETS / "tiny-clip", "glip": ASSETS / "tiny-glip", "grounding_dino": dino}


@pytest.fixture
def copied(whole, tmp_path):
    """copied(kind) -> a folder of links to the files of a whole one; write() replaces one of them."""

    def make(kind: str) -> Path:
        folder = tmp_path / kind
        folder.mkdir()
        for file in whole[kind].iterdir():
            if file.suffix in (".json", ".safetensors", ".txt"):
                (folder / file.name).symlink_to(file)
        return folder

    return make


def write(file: Path, content: bytes | str) -> None:
    file.unlink(missing_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())


def changed(file: Path, **values) -> None:
    """A JSON file with values set; a dotted name goes into nested objects."""
    content = json.loads(file.read_text())
    for name, value in values.items():
        *parents, key = name.split("__")
        inner = content
        for parent in parents:
            inner = inner[parent]
        inner[key] = value
    write(file, json.dumps(content))


def refused(folder: Path, *words: str) -> None:
    with pytest.raises(DuotuneError) as caught:
        duotune.load_backbone(str(folder), device="cpu")
    line = str(caught.value)
    assert line.isprintable() and len(line.replace(str(folder), "")) < 400, line
    assert isinstance(caught.value, DataError), (type(caught.value), line)
    for word in words:
        assert word in line, (word, line)


@pytest.mark.parametrize("kind", KINDS)
def test_without_tokenizer_files_the_tokenizer_is_named(copied, kind):
    folder = copied(kind)
    for file in ("tokenizer.json", "vocab.txt"):
        (folder / file).unlink(missing_ok=True)
    refused(folder, "has no tokenizer", "tokenizer.json", "vocab.txt")
    (folder / "tokenizer_config.json").unlink(missing_ok=True)
    refused(folder, "has no tokenizer")


@pytest.mark.parametrize("kind", KINDS)
def test_without_preprocessor_it_is_named(copied, kind):
    folder = copied(kind)
    (folder / "preprocessor_config.json").unlink()
    refused(folder, "preprocessor_config.json")


@pytest.mark.parametrize(
    ("kind", "other"), [("clip", "glip"), ("glip", "clip"), ("glip", "grounding_dino"), ("grounding_dino", "glip")]
)
def test_the_tokenizer_of_another_model_is_refused(copied, whole, kind, other):
    folder = copied(kind)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        (folder / name).unlink(missing_ok=True)
        if (whole[other] / name).exists():
            (folder / name).symlink_to(whole[other] / name)
    refused(folder, "tokenizer")


def test_a_text_ends_where_the_model_looks(copied):
    folder = copied("clip")
    text = (folder / "tokenizer.json").read_text()
    write(folder / "tokenizer.json", text.replace('"post_processor"', '"ignored"'))
    refused(folder, "tokenizer")
    write(folder / "tokenizer.json", text)
    duotune.load_backbone(str(folder), device="cpu")
    changed(folder / "config.json", text_config__eos_token_id=5)
    refused(folder, "closes a text with token 6088", "[5]")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff\xfe\x00", b"[" * 5000, b"null", b'{"a": ' + b"9" * 5000 + b"}"]
)
def test_descriptions_that_are_none(copied, kind, content):
    folder = copied(kind)
    for file in ("config.json", "tokenizer_config.json", "preprocessor_config.json", "tokenizer.json"):
        if not (folder / file).exists():
            continue
        kept = (folder / file).read_bytes()
        write(folder / file, content)
        refused(folder, file)
        write(folder / file, kept)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_are_none(copied, whole, kind):
    folder = copied(kind)
    weights = (folder / "model.safetensors").read_bytes()
    for content in (
        b"",
        weights[:7],
        weights[: len(weights) // 2],
        b"\xff" * 100,
        weights[:-4],
        b"version https://git-lfs",
    ):
        write(folder / "model.safetensors", content)
        refused(folder, "model.safetensors")
    (folder / "model.safetensors").unlink()
    refused(folder, "model.safetensors")
    other = next(k for k in KINDS if k != kind)
    (folder / "model.safetensors").symlink_to(whole[other] / "model.safetensors")
    refused(folder)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("clip", {"text_config__vocab_size": 6088}),
        ("clip", {"text_config__num_hidden_layers": 3}),  # one layer of the file would be left out
        ("clip", {"text_config__num_hidden_layers": 5}),
        ("clip", {"text_config__num_hidden_layers": 10**6}),
        ("clip", {"text_config__hidden_size": 64}),
        ("clip", {"text_config__hidden_size": "wide"}),
        ("clip", {"vision_config__image_size": 10**9}),
        ("clip", {"vision_config__image_size": 64}),
        ("clip", {"vision_config__patch_size": 0}),
        ("clip", {"vision_config__num_attention_heads": 0}),
        ("clip", {"projection_dim": 10**29}),
        ("clip", {"text_config": None}),
        ("clip", {"vision_config__hidden_act": "x" * 5000}),
        ("clip", {"model_type": "glip"}),
        ("glip", {"num_fusion_layers": 1}),
        ("glip", {"depths": [1, 1, 10**6, 1]}),
        ("glip", {"depths": "1111"}),
        ("glip", {"text_config": []}),
        ("glip", {"max_text_tokens": 10**9}),
        ("glip", {"text_config__vocab_size": 4097}),
        ("grounding_dino", {"encoder_layers": 1}),
        ("grounding_dino", {"d_model": 10**7}),
        ("grounding_dino", {"text_config__vocab_size": 1041}),
        ("grounding_dino", {"backbone_config": {"model_type": "nothing"}}),
    ],
    ids=str,
)
def test_configurations_that_do_not_fit_their_weights(copied, kind, values):
    folder = copied(kind)
    changed(folder / "config.json", **values)
    with pytest.raises(DuotuneError) as caught:  # sizes that contradict each other are a ConfigError of GLIP's
        duotune.load_backbone(str(folder), device="cpu")
    assert isinstance(caught.value, DataError | ConfigError)
    assert str(caught.value).isprintable() and len(str(caught.value).replace(str(folder), "")) < 400


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("clip", {"image_mean": [0.5, 0.5]}),
        ("clip", {"image_mean": None}),
        ("clip", {"image_std": [0.0, 0.3, 0.3]}),
        ("clip", {"image_mean": [122.8, 116.7, 104.1]}),  # of values in 0..255
        ("glip", {"pixel_mean": "abc"}),
        ("glip", {"short_side": -1}),
        ("glip", {"long_side": 10**9}),
        ("grounding_dino", {"image_std": [1, 1, "x"]}),
        ("grounding_dino", {"size": {"shortest_edge": "x", "longest_edge": 9}}),
        ("grounding_dino", {"size": {"height": 9, "width": 9}}),
    ],
    ids=str,
)
def test_preprocessors_that_make_no_pictures(copied, kind, values):
    folder = copied(kind)
    changed(folder / "preprocessor_config.json", **values)
    refused(folder)


def test_weights_with_another_shape_than_the_header_of_one_tensor(copied):
    folder = copied("clip")
    tensors = load_file(folder / "model.safetensors")
    name = next(k for k in tensors if k.endswith("text_projection.weight"))
    tensors[name] = tensors[name].T[:-1].contiguous()
    (folder / "model.safetensors").unlink()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    refused(folder)
    del tensors[name]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    refused(folder, "lacks 1 weights of a CLIPModel", name)


def test_interruptions_pass_and_the_rest_is_told(tmp_path):
    class PanicException(BaseException):  # as the tokenizers' Rust code raises
        pass

    for raised in (KeyboardInterrupt, SystemExit, ConfigError("a fault")):
        with pytest.raises(type(raised) if isinstance(raised, Exception) else raised):
            with guarded("x", tmp_path, "model"):
                raise raised
    for raised in (PanicException("a\nb"), RecursionError(), ImportError("timm"), RuntimeError("shapes:\n  w is (2,)")):
        with pytest.raises(DataError, match="cannot load the model 'x'"), guarded("x", tmp_path, "model"):
            raise raised
    with pytest.raises(DataError, match="more memory"), guarded("x", tmp_path, "model"):
        raise MemoryError


def test_copies_as_they_are_load(copied):
    for kind in KINDS:
        assert duotune.load_backbone(str(copied(kind)), device="cpu").fingerprint()


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_other_shapes_are_named(copied, kind):
    folder = copied(kind)
    weights = load_file(folder / "model.safetensors")
    name = sorted(name for name, weight in weights.items() if weight.ndim == 1)[0]
    (folder / "model.safetensors").unlink()
    save_file({**weights, name: weights[name].new_zeros(3)}, folder / "model.safetensors", {"format": "pt"})
    refused(folder, "1 weights have other shapes than config.json says", name)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_are_no_numbers(copied, kind):
    folder = copied(kind)
    weights = load_file(folder / "model.safetensors")
    name = sorted(name for name, weight in weights.items() if weight.ndim == 2)[0]
    weights[name][0, 0] = float("nan")
    (folder / "model.safetensors").unlink()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    refused(folder, "has NaN or infinity in 1 weights", "download or copy it again")


@pytest.mark.parametrize("kind", KINDS)
def test_a_preprocessor_that_says_nothing(copied, kind):
    folder = copied(kind)
    write(folder / "preprocessor_config.json", "{}")
    refused(folder, "preprocessor_config.json does not say how pictures are prepared")
