"""A tiny CLIP with random weights and a folder of drawn pictures, for every test that needs a backbone or data."""

from __future__ import annotations

import json
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # tests never reach out
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads that wait for each other cost more than they bring here

import pytest
import torch

COLOURS = {"red": (210, 40, 40), "green": (40, 180, 60), "blue": (40, 70, 210), "grey": (128, 128, 128)}
CORPUS = [
    "a photo of a cat.",
    "a photo of a dog.",
    "a drawing of a red square, a green square, a blue square, a grey square.",
    "zero one two three four five six seven eight nine bird boat tree house car plane flower apple",
]


def save_tiny_tokenizer(folder: Path, max_length: int = 40) -> int:
    """Write a small BPE that loads as a CLIPTokenizer; returns its number of entries."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    words = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"  # CLIP's own split
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>", continuing_subword_prefix="", unk_token="<|endoftext|>"))
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=400, end_of_word_suffix="</w>", initial_alphabet=letters, show_progress=False
    )
    bpe.train_from_iterator(CORPUS, trainer)
    model = json.loads(bpe.to_str())["model"]
    tokens = [t for t, _ in sorted(model["vocab"].items(), key=lambda x: x[1])]
    tokens += [c + "</w>" for c in letters if c + "</w>" not in model["vocab"]] + ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(m) for m in model["merges"]) + "\n")
    CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=max_length).save_pretrained(
        folder
    )
    return len(tokens)


def save_tiny_clip(folder: Path, seed: int = 0) -> Path:
    """Write a CLIPModel folder: random weights, 32 px, patch 8, widths 48 (text), 64 (vision), 32 (joint)."""
    from transformers import CLIPConfig, CLIPModel

    entries = save_tiny_tokenizer(folder)
    common = {"num_attention_heads": 2}
    config = CLIPConfig(
        text_config={
            **common,
            "vocab_size": entries,
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "max_position_embeddings": 40,
            "bos_token_id": entries - 2,
            "eos_token_id": entries - 1,
            "pad_token_id": entries - 1,
        },
        vision_config={
            **common,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 3,
            "image_size": 32,
            "patch_size": 8,
        },
        projection_dim=32,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        CLIPModel(config).save_pretrained(folder)
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 32},
        "crop_size": {"height": 32, "width": 32},
        "resample": 3,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


@pytest.fixture(scope="session")
def make_tiny_clip():
    """`save_tiny_clip(folder, seed)`, for tests that need a second backbone."""
    return save_tiny_clip


@pytest.fixture(scope="session")
def tiny_clip_folder(tmp_path_factory) -> Path:
    """A CLIPModel folder (model, tokenizer, preprocessor) with random weights."""
    return save_tiny_clip(tmp_path_factory.mktemp("backbones") / "tiny-random-clip")


@pytest.fixture(scope="session")
def tiny_clip(tiny_clip_folder):
    """The random tiny CLIP as a loaded backbone, float32 on the CPU; shared: tests must not cast it."""
    from duotune.backbones import load_backbone

    return load_backbone(str(tiny_clip_folder), device="cpu")


@pytest.fixture(scope="session")
def picture_folder(tmp_path_factory) -> Path:
    """`train/ val/ test/` with 6, 2 and 5 noisy squares of each of four colours, 40 x 36 pixels, PNG."""
    import numpy as np
    from PIL import Image

    root, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for split, count in {"train": 6, "val": 2, "test": 5}.items():
        for name, colour in COLOURS.items():
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.full((36, 40, 3), 255.0)
                y, x = random.integers(0, 12, 2)
                pixels[y : y + 22, x : x + 22] = colour
                pixels += random.normal(0, 12, pixels.shape)
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / split / name / f"{i}.png")
    return root


@pytest.fixture(scope="session")
def picture_data(picture_folder):
    """The pictures of `picture_folder` as ClassificationData."""
    from duotune.data.base import ClassificationData, ImageItem

    def items(split: str) -> tuple[ImageItem, ...]:
        return tuple(
            ImageItem(path, label)
            for label, name in enumerate(COLOURS)
            for path in sorted((picture_folder / split / name).iterdir())
        )

    names = tuple(f"{colour} square" for colour in COLOURS)
    return ClassificationData("squares", names, items("train"), items("val"), items("test"), "a drawing of a {}.")
