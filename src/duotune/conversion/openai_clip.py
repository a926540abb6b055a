"""OpenAI's original CLIP files (ViT-B/32.pt, ViT-B-16.pt, ViT-L-14.pt, ViT-L-14-336px.pt) -> a Hugging Face folder.

Where the facts come from: the layout of the tensors is that of the published files, as OpenAI's
`clip/model.py` (MIT licence) builds its model from them; the names on the other side are those of
`openai/clip-vit-base-patch32` on the Hub.

    OpenAI                              Hugging Face
    attn.in_proj_weight  (3d, d)        q_proj, k_proj, v_proj, each (d, d)
    visual.proj, text_projection (d,E)  visual_projection, text_projection, each (E, d)
    mlp.c_fc, mlp.c_proj                mlp.fc1, mlp.fc2
    the highest token id ends a text    eos_token_id = vocabulary - 1, its first occurrence

Every size is read off the tensors; the number of heads is width / 64 in both towers. The published
files are TorchScript archives; `reading` takes the tensors out of them and of plain state dicts
without running any of their code, see there. Linear weights are stored in float16 and the rest in
float32; all are written as float32 by default, which loses nothing.

The vocabulary is not in these files. It comes from OpenAI's `bpe_simple_vocab_16e6.txt.gz`, or from
any Hugging Face folder of a CLIP with the same vocabulary. Hugging Face's tokenizer normalises
Unicode (NFC) where OpenAI's repairs text with ftfy and resolves HTML entities: texts without such
defects give the same tokens.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..errors import ArtifactError, ConfigError, because
from ..reading import MAX_DESCRIPTION_BYTES, decode_text, read_bytes
from ..writing import folder_beside, write_text
from .reading import read_archive, state_dict_of, understood

HEAD_WIDTH = 64
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)

_NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size")


def convert_openai_clip(
    path: str | Path,
    out: str | Path,
    bpe: str | Path | None = None,
    tokenizer: str | Path | None = None,
    dtype: str = "float32",
) -> Path:
    """Write a Hugging Face `CLIPModel` folder: config.json, model.safetensors, tokenizer and image-processor files.

    Args:
        path: OpenAI's `.pt` file, a TorchScript archive or a state dict; vision transformers only.
        out: folder to create; it must not exist, or be empty. Nothing is left there after an error.
        bpe: OpenAI's `bpe_simple_vocab_16e6.txt.gz`, or the same text unpacked.
        tokenizer: instead of `bpe`, a Hugging Face folder with a CLIP tokenizer of the same vocabulary.
        dtype: "float32", "float16" or "bfloat16" of the written weights.

    Returns:
        `out`.

    Raises:
        ArtifactError: the file cannot be read, is no ViT CLIP, lacks tensors, or the vocabulary does not fit it.
        ConfigError: neither or both of `bpe` and `tokenizer`, or an unknown dtype.
    """
    out = Path(out)
    if (bpe is None) == (tokenizer is None):
        raise ConfigError(
            "give either bpe (OpenAI's bpe_simple_vocab_16e6.txt.gz, it lies beside clip/simple_tokenizer.py in their "
            "repository) or tokenizer (a Hugging Face folder of a CLIP with the same vocabulary)"
        )
    if dtype not in ("float32", "float16", "bfloat16"):
        raise ConfigError(f"dtype must be float32, float16 or bfloat16, not {dtype!r}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ArtifactError(f"{out} exists already; choose a folder that does not exist or is empty")

    weights = state_dict_of(read_archive(path))
    if not weights:
        raise ArtifactError(f"{path} holds no named tensors; expected OpenAI's CLIP weights")
    with understood(path):
        config = infer_config(weights, str(path))
        # copies: safetensors refuses tensors that share memory, as parts of one projection do
        tensors = {
            name: t.to(getattr(torch, dtype), copy=True).contiguous() for name, t in convert_weights(weights, str(path))
        }

    try:
        with folder_beside(out) as part:
            _write_tokenizer(part, config["text_config"], bpe, tokenizer)
            save_file(tensors, str(part / "model.safetensors"), metadata={"format": "pt"})
            _write_json(part / "config.json", {**config, "dtype": dtype})
            _write_json(part / "preprocessor_config.json", _processor(config["vision_config"]["image_size"]))
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"cannot write {out} ({error}); is there space and permission?") from error
    return out


def infer_config(weights: dict[str, Tensor], source: str = "the file") -> dict:
    """`config.json` of a CLIPModel from the shapes of OpenAI's tensors.

    Raises:
        ArtifactError: a ResNet, or not CLIP at all, or widths that are no multiple of 64.
    """
    if any(name.startswith(("visual.layer1.", "visual.attnpool.")) for name in weights):
        raise ArtifactError(f"{source} is a ResNet CLIP; its image tower holds no tokens, use a ViT (ViT-B/32, ...)")
    wanted = (
        *("visual.conv1.weight", "visual.positional_embedding", "visual.proj", "token_embedding.weight"),
        *("positional_embedding", "text_projection", "visual.transformer.resblocks.0.mlp.c_fc.weight"),
        "transformer.resblocks.0.mlp.c_fc.weight",
    )
    _require(weights, wanted, source)
    width, channels, patch, _ = weights["visual.conv1.weight"].shape
    side = round((weights["visual.positional_embedding"].shape[0] - 1) ** 0.5)
    if side * side + 1 != weights["visual.positional_embedding"].shape[0]:
        raise ArtifactError(f"{source}: the image positions do not form a square grid and one class token")
    vocabulary, text_width = weights["token_embedding.weight"].shape
    embed_dim = weights["text_projection"].shape[1]
    for tower, d in (("vision", width), ("text", text_width)):
        if d % HEAD_WIDTH:
            raise ArtifactError(f"{source}: the {tower} width {d} is no multiple of the head width {HEAD_WIDTH}")
    shared = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "attention_dropout": 0.0, "projection_dim": embed_dim}
    text = {
        "model_type": "clip_text_model",
        "vocab_size": vocabulary,
        "hidden_size": text_width,
        "intermediate_size": weights["transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
        "num_hidden_layers": _count_layers(weights, "transformer.resblocks."),
        "num_attention_heads": text_width // HEAD_WIDTH,
        "max_position_embeddings": weights["positional_embedding"].shape[0],
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": vocabulary - 1,
    }
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": width,
        "intermediate_size": weights["visual.transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
        "num_hidden_layers": _count_layers(weights, "visual.transformer.resblocks."),
        "num_attention_heads": width // HEAD_WIDTH,
        "num_channels": channels,
        "patch_size": patch,
        "image_size": side * patch,
    }
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": embed_dim,
        "text_config": {**text, **shared},
        "vision_config": {**vision, **shared},
    }


def convert_weights(weights: dict[str, Tensor], source: str = "the file") -> Iterator[tuple[str, Tensor]]:
    """Hugging Face's name and tensor for each of OpenAI's tensors.

    Raises:
        ArtifactError: a tensor is missing, or a weight has no place in a CLIPModel.
    """
    left = {n for n in weights if n not in _NOT_WEIGHTS}
    renamed = {
        "logit_scale": "logit_scale",
        "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
        "positional_embedding": "text_model.embeddings.position_embedding.weight",
        "visual.class_embedding": "vision_model.embeddings.class_embedding",
        "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
        "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    }
    for end in ("weight", "bias"):
        renamed[f"ln_final.{end}"] = f"text_model.final_layer_norm.{end}"
        renamed[f"visual.ln_pre.{end}"] = f"vision_model.pre_layrnorm.{end}"
        renamed[f"visual.ln_post.{end}"] = f"vision_model.post_layernorm.{end}"
    split: dict[str, str] = {}
    for old, new in (("transformer.resblocks.", "text_model"), ("visual.transformer.resblocks.", "vision_model")):
        for i in range(_count_layers(weights, old)):
            there, here = f"{old}{i}.", f"{new}.encoder.layers.{i}."
            for end in ("weight", "bias"):
                renamed[f"{there}ln_1.{end}"] = f"{here}layer_norm1.{end}"
                renamed[f"{there}ln_2.{end}"] = f"{here}layer_norm2.{end}"
                renamed[f"{there}mlp.c_fc.{end}"] = f"{here}mlp.fc1.{end}"
                renamed[f"{there}mlp.c_proj.{end}"] = f"{here}mlp.fc2.{end}"
                renamed[f"{there}attn.out_proj.{end}"] = f"{here}self_attn.out_proj.{end}"
                split[f"{there}attn.in_proj_{end}"] = f"{here}self_attn.{{}}_proj.{end}"
    turned = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}

    _require(weights, (*renamed, *split, *turned), source)
    for old, new in renamed.items():
        yield new, weights[old]
    for old, new in split.items():
        for part, tensor in zip("qkv", weights[old].chunk(3)):
            yield new.format(part), tensor
    for old, new in turned.items():
        yield new, weights[old].T
    left -= {*renamed, *split, *turned}
    # an archive may carry constants such as the causal mask; a weight without a place would change the outputs
    if foreign := sorted(n for n in left if re.search(r"(weight|bias|embedding|proj)$", n)):
        raise ArtifactError(f"{source} holds weights that a CLIP has no place for: {', '.join(foreign[:5])}")


def read_bpe(path: str | Path, vocab_size: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges from OpenAI's `bpe_simple_vocab_16e6.txt.gz`.

    The file holds one header line and one merge per line, more of them than the model uses. Ids:
    the 256 bytes, the 256 bytes at a word's end, one per merge, start and end of text.

    Args:
        path: the file, packed or unpacked.
        vocab_size: rows of the model's token embedding; 49408 in OpenAI's models.

    Raises:
        ArtifactError: there is no such file, or it holds fewer merges than the model needs.
    """
    path = Path(path)
    expected = "bpe_simple_vocab_16e6.txt.gz"
    try:
        raw = read_bytes(path, expected, ArtifactError, MAX_DESCRIPTION_BYTES)
        if raw[:2] == b"\x1f\x8b":
            with gzip.open(io.BytesIO(raw)) as file:
                raw = file.read(MAX_DESCRIPTION_BYTES + 1)
            if len(raw) > MAX_DESCRIPTION_BYTES:
                raise ArtifactError(f"it has more than {MAX_DESCRIPTION_BYTES:,} bytes unpacked")
        lines = decode_text(raw, str(path), ArtifactError).split("\n")
    except (ArtifactError, OSError, EOFError, zlib.error) as error:
        raise ArtifactError(f"cannot read the vocabulary {path} ({because(error)}); expected {expected}") from error
    wanted = vocab_size - 2 * 256 - 2
    merges = [tuple(line.split()) for line in lines[1 : 1 + max(wanted, 0)]]
    if wanted < 0 or len(merges) < wanted or any(len(m) != 2 for m in merges):
        good = sum(len(m) == 2 for m in merges)
        raise ArtifactError(
            f"{path} gives {good} merges, but a vocabulary of {vocab_size} needs {wanted}; "
            "expected OpenAI's bpe_simple_vocab_16e6.txt.gz"
        )
    # a byte stands for itself where it is a visible character, the others are moved above 255
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    alphabet = [chr(b) for b in visible] + [chr(256 + n) for n in range(256 - len(visible))]
    words = [*alphabet, *(a + "</w>" for a in alphabet), *("".join(m) for m in merges)]
    return {w: i for i, w in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}, merges


def _write_tokenizer(folder: Path, text: dict, bpe: str | Path | None, source: str | Path | None) -> None:
    from transformers import AutoTokenizer, CLIPTokenizer

    if bpe is not None:
        vocabulary, merges = read_bpe(bpe, text["vocab_size"])
        tokenizer = CLIPTokenizer(vocabulary, merges, model_max_length=text["max_position_embeddings"])
    else:
        if not Path(source).is_dir():
            raise ArtifactError(f"no folder {source}; expected a Hugging Face folder with a CLIP tokenizer")
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(source))
        except Exception as error:  # transformers meets a broken folder with any exception there is
            raise ArtifactError(f"{source} holds no tokenizer that can be loaded ({because(error)})") from error
    if len(tokenizer) != text["vocab_size"] or tokenizer.eos_token_id != text["eos_token_id"]:
        raise ArtifactError(
            f"the vocabulary of {bpe or source} has {len(tokenizer)} entries and ends texts with id "
            f"{tokenizer.eos_token_id}; the model has {text['vocab_size']} and {text['eos_token_id']}"
        )
    tokenizer.save_pretrained(folder)


def _processor(size: int) -> dict:
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": 3,  # bicubic
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(IMAGE_MEAN),
        "image_std": list(IMAGE_STD),
    }


def _count_layers(weights: dict[str, Tensor], prefix: str) -> int:
    return len({n[len(prefix) :].partition(".")[0] for n in weights if n.startswith(prefix)})


def _require(weights: dict[str, Tensor], names: tuple[str, ...], source: str) -> None:
    if missing := [n for n in names if n not in weights]:
        raise ArtifactError(
            f"{source} lacks {len(missing)} of the tensors of OpenAI's CLIP (first: {missing[0]}); "
            f"it holds {', '.join(sorted(weights)[:3])}, ..."
        )


def _write_json(path: Path, content: dict) -> None:
    write_text(path, json.dumps(content, indent=2) + "\n")
