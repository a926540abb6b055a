"""Small COCO files, and a BERT-like tokenizer made on the spot."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

# BERT's own ids of what the known example needs
WORDPIECES = {
    "[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, ".": 1012, "person": 2711, "hair": 2606,
    "dr": 2852, "bicycle": 10165, "##ier": 3771,
}  # fmt: skip
WORDS = "cat dog red bow a the man with hat holes on road there are some , tree car boat".split()


@pytest.fixture(scope="session")
def tokenizer():
    """A WordPiece tokenizer in BERT's form, letters included, so that every word can be spelt."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocab = dict(WORDPIECES)
    free = (i for i in range(200, 900))
    for piece in [*WORDS, *"abcdefghijklmnopqrstuvwxyz0123456789", *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz")]:
        vocab.setdefault(piece, next(free))
    model = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    model.normalizer = normalizers.BertNormalizer(lowercase=True)
    model.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    model.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 101), ("[SEP]", 102)]
    )
    special = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    return PreTrainedTokenizerFast(tokenizer_object=model, **special)


def coco_content(images, annotations, categories):
    """Rows (id, file, width, height), (id, image, category, [x, y, w, h]) or dicts, {id: name} -> COCO's objects."""
    as_image = lambda r: r if isinstance(r, dict) else dict(zip(("id", "file_name", "width", "height"), r))
    as_box = lambda r: r if isinstance(r, dict) else dict(zip(("id", "image_id", "category_id", "bbox"), r))
    return {
        "images": [as_image(row) for row in images],
        "annotations": [as_box(row) for row in annotations],
        "categories": [{"id": key, "name": name} for key, name in categories.items()]
        if isinstance(categories, dict)
        else categories,
    }


@pytest.fixture
def write_coco():
    """write_coco(annotation file, picture folder, images, annotations, categories): the file and its pictures."""

    def write(path: Path, pictures: Path, images, annotations, categories, draw: bool = True) -> Path:
        content = coco_content(images, annotations, categories)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
        for image in content["images"] if draw else ():
            file = pictures / (image.get("file_name") or "/".join(image["coco_url"].split("/")[-2:]))
            file.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(0).integers(0, 256, (image["height"], image["width"], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(file)
        return path

    return write
