"""The kinds of input: how each is made and damaged, and what must be true of what duotune makes of it.

A target is built once from a folder for its undamaged files; `run(rng, folder)` makes one input in `folder`, has duotune
read it, and returns what is wrong with the result, None if nothing is. It raises whatever duotune raises.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import math
import os
import pickle
import random
import shutil
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch
import yaml
from mutations import damaged_bytes, damaged_value, written
from PIL import Image
from safetensors.torch import load_file, save_file

import duotune
from duotune.backbones import DualEncoder
from duotune.data import load_dataset
from duotune.data.base import ImageItem
from duotune.data.detection import load_detection
from duotune.data.images import MAX_PIXELS, close_containers, content_stamp, image_size, open_image, probe_image
from duotune.errors import DataError, DuotuneError
from duotune.training.checkpoints import seal

torch.set_num_threads(1)
NAMES = ["red fox", "cat", "dog"]


class Target:
    """One kind of input."""

    def __init__(self, whole: Path):
        self.whole = whole
        whole.mkdir(parents=True)

    def run(self, rng: random.Random, folder: Path) -> str | None:
        raise NotImplementedError


def _picture(seed: int, size: tuple[int, int] = (24, 18), mode: str = "RGB") -> Image.Image:
    rng = random.Random(seed)
    image = Image.frombytes("RGB", size, rng.randbytes(size[0] * size[1] * 3))
    if mode == "I;16":
        return Image.frombytes("I;16", size, rng.randbytes(size[0] * size[1] * 2))
    if mode == "F":
        return image.convert("L").convert("F")
    return image.convert(mode)


def _encoded(rng: random.Random) -> tuple[str, bytes]:
    """A small picture in one of the formats that are read: its suffix and bytes."""
    choices = [
        ("png", "RGB", {}),
        ("png", "RGBA", {}),
        ("png", "P", {}),
        ("png", "I;16", {}),
        ("jpg", "RGB", {}),
        ("jpg", "CMYK", {}),
        ("jpg", "L", {"progressive": True}),
        ("gif", "P", {"save_all": True}),
        ("webp", "RGB", {}),
        ("bmp", "RGB", {}),
        ("tif", "RGB", {"compression": "tiff_lzw"}),
        ("tif", "F", {}),
        ("ppm", "RGB", {}),
    ]
    suffix, mode, options = rng.choice(choices)
    out = io.BytesIO()
    image = _picture(rng.randrange(50), mode=mode)
    if suffix == "gif":
        options = {**options, "append_images": [_picture(1, mode="P")]}
    elif suffix in ("png", "jpg") and rng.random() < 0.3:
        exif = Image.Exif()
        exif[0x0112] = rng.choice((1, 6, 8, 99))
        options = {**options, "exif": exif}
    image.save(out, {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper()), **options)
    return suffix, out.getvalue()


def _png(width: int, height: int, body: bytes, depth: int = 8, colour: int = 2) -> bytes:
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


class ImageTarget(Target):
    """One picture as a file, in a folder of classes, or inside a zip archive."""

    def run(self, rng, folder):
        suffix, content = _encoded(rng)
        kind = rng.randrange(12)
        if kind == 0:
            size = rng.choice(((0, 0), (1, 0), (30_000, 30_000), (2**31 - 1, 1), (9460, 9460), (1, 2**31 - 1)))
            suffix, content = "png", _png(*size, bytes(100))
        elif kind > 1:
            content = damaged_bytes(rng, content)
        path = folder / "data" / "cat" / f"a.{suffix}"
        path.parent.mkdir(parents=True)
        if kind == 2 and rng.random() < 0.5:
            os.mkfifo(path)
        else:
            path.write_bytes(content)
        if rng.random() < 0.25:
            return self._archive(rng, folder, path)
        item = ImageItem(path, 0)
        size = None
        for look in (content_stamp, probe_image, image_size):
            try:
                size = look(item)
            except DataError:
                pass
        image = open_image(item)
        if image.mode != "RGB" or image.width * image.height > MAX_PIXELS or not image.width * image.height:
            return f"a picture of mode {image.mode} and size {image.size}"
        if size is not None and image.size not in size:
            return f"a picture of size {image.size} said to have {size}"
        return None

    def _archive(self, rng, folder, path):
        close_containers()
        packed = folder / "a.zip"
        compression = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
        with zipfile.ZipFile(packed, "w", compression) as archive:
            for name in ("train/cat/a.png", "train/dog/b.png", "test/cat/c.png", "test/dog/d.png"):
                content = _png(4, 4, bytes(4 * 13))
                if name.endswith("d.png"):
                    content = bytes(40 * 2**20) if rng.random() < 0.02 else path.read_bytes() if path.is_file() else b""
                elif rng.random() < 0.05:
                    name = rng.choice(("../x.png", "/x.png", "a\\b\\c.png", "train/c\x00at/a.png", "train/cat/a.png"))
                archive.writestr(name, content)
        if rng.random() < 0.7:
            packed.write_bytes(damaged_bytes(rng, packed.read_bytes()))
        data = load_dataset(str(packed))
        for item in [*data.train, *data.val, *data.test]:
            if not 0 <= item.label < len(data.class_names):
                return f"label {item.label} of {len(data.class_names)} classes"
            if open_image(item).mode != "RGB":
                return "a picture that is not RGB"
        return None


class JsonTarget(Target):
    """COCO annotations, alone, beside pictures or in an archive; split files; `dataset.json`."""

    def __init__(self, whole):
        super().__init__(whole)
        self.coco = {
            "images": [{"id": i, "file_name": f"{i}.png", "width": 24, "height": 18} for i in range(4)],
            "annotations": [
                {
                    "id": i,
                    "image_id": i % 4,
                    "category_id": 1 + i % 3,
                    "bbox": [1, 2, 5 + i, 6],
                    "area": 30,
                    "iscrowd": 0,
                }
                for i in range(6)
            ],
            "categories": [{"id": 1 + i, "name": name} for i, name in enumerate(NAMES)],
        }
        for i in range(4):
            _picture(i).save(whole / f"{i}.png")

    def run(self, rng, folder):
        kind = rng.randrange(4)
        if kind == 3:
            return self._classes(rng, folder)
        for i in range(4):
            os.link(self.whole / f"{i}.png", folder / f"{i}.png")
        path = folder / "x.json"
        path.write_bytes(written(rng, damaged_value(rng, self.coco)))
        if rng.random() < 0.2:
            path.write_bytes(damaged_bytes(rng, json.dumps(self.coco).encode()))
        source = path
        if kind == 2:
            close_containers()
            source = folder / "x.zip"
            with zipfile.ZipFile(source, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.write(path, "test.json")
                for i in range(4):
                    archive.write(folder / f"{i}.png", f"test/{i}.png")
        data = load_detection(str(source))
        if len(set(data.class_names)) != len(data.class_names):
            return "class names that are the same"
        for item in [*data.train, *data.val, *data.test]:
            boxes, labels = torch.as_tensor(item.boxes, dtype=torch.float64).reshape(-1, 4), list(item.labels)
            if len(boxes) != len(labels) or any(not 0 <= label < len(data.class_names) for label in labels):
                return f"labels {labels} of {len(data.class_names)} classes for {len(boxes)} boxes"
            width, height = item.size if hasattr(item, "size") else (24, 18)
            if not boxes.isfinite().all() or (boxes < 0).any() or (boxes[:, 2:] > max(width, height, 24)).any():
                return f"boxes {boxes.tolist()} outside of their picture"
        return None

    def _classes(self, rng, folder):
        for split in ("train", "test"):
            for name in NAMES:
                (folder / "data" / split / name).mkdir(parents=True)
                for i in range(2):
                    os.link(self.whole / f"{i}.png", folder / "data" / split / name / f"{i}.png")
        about = {"name": "x", "class_names": NAMES, "template": "a photo of a {}.", "templates": ["a {}."]}
        (folder / "data" / "dataset.json").write_bytes(written(rng, damaged_value(rng, about)))
        data = load_dataset(str(folder / "data"))
        if len(set(data.class_names)) != len(data.class_names) or len(data.class_names) != 3:
            return f"class names {data.class_names}"
        if any(item.label not in range(3) for item in data.train) or "{}" not in data.template:
            return "labels or template that are none"
        return None


class YamlTarget(Target):
    """Recipes: read, validated, and turned into training arguments' values."""

    def __init__(self, whole):
        super().__init__(whole)
        from duotune.recipes import list_recipes, load_recipe

        self.recipes = [vars(load_recipe(name)) for name in list_recipes()]
        self.texts = [
            yaml.safe_dump({k: v for k, v in values.items() if not k.startswith("_")}, sort_keys=False)
            for values in self.recipes
        ]

    def run(self, rng, folder):
        from duotune.recipes import Recipe, load_recipe

        path = folder / "r.yaml"
        text = rng.choice(self.texts)
        kind = rng.randrange(4)
        if kind == 0:
            path.write_bytes(damaged_bytes(rng, text.encode()))
        elif kind == 1:
            path.write_bytes(written(rng, damaged_value(rng, yaml.safe_load(text))))
        else:
            scalars = (
                "2024-99-99",
                "!!int x",
                "!!float ''",
                ".inf",
                ".nan",
                "1e400",
                "0x" + "f" * 40,
                "9" * 5000,
                "*a",
            )
            scalars += (
                "&a [*a]",
                "!!python/name:os.x y",
                "!!timestamp x",
                "!!binary '='",
                "[" * 2000,
                "{? a: b}",
                "1:1:1",
            )
            scalars += ("!!set {a, b}", "!!omap [a: 1]", "~", "'\\ud800'", '"\\0"', "x" * 5000, "| \n a\n b", "- - -")
            lines = text.splitlines()
            place = rng.randrange(len(lines))
            head = lines[place].partition(":")[0]
            lines[place] = f"{head}: {rng.choice(scalars)}"
            path.write_text("\n".join(lines))
        recipe = load_recipe(path).validate()
        if not isinstance(recipe, Recipe) or not isinstance(recipe.epochs, int) or recipe.epochs < 1:
            return f"a recipe of {recipe.epochs!r} epochs"
        for value in (*recipe.settings.values(), *recipe.training.values()):
            if isinstance(value, float) and not math.isfinite(value):
                return f"a setting that is {value}"
        return None


class CsvTarget(Target):
    """A table of pictures."""

    def __init__(self, whole):
        super().__init__(whole)
        for i in range(9):
            _picture(i).save(whole / f"{i}.png")

    def run(self, rng, folder):
        for i in range(9):
            os.link(self.whole / f"{i}.png", folder / f"{i}.png")
        out = io.StringIO()
        table = csv.writer(out, delimiter=rng.choice(",,,;\t"))
        rows = [["path", "label", "split"]]
        rows += [[f"{i}.png", NAMES[i % 3], ("train", "test", "val")[i // 3]] for i in range(9)]
        if rng.random() < 0.5:
            for _ in range(rng.choice((1, 3))):
                row = rng.choice(rows)
                row[rng.randrange(len(row))] = rng.choice(
                    ("", "x" * 200_000, "a\nb", '"', "\x1b[0m", "../../etc/passwd", "7", "-1")
                )
        table.writerows(rows)
        content = out.getvalue().encode()
        path = folder / "x.csv"
        path.write_bytes(damaged_bytes(rng, content) if rng.random() < 0.7 else content)
        data = load_dataset(str(path))
        if len(set(data.class_names)) != len(data.class_names):
            return "class names that are the same"
        for item in [*data.train, *data.val, *data.test]:
            if not 0 <= item.label < len(data.class_names) or not item.path.exists():
                return f"an item {item}"
        return None


class ArtifactTarget(Target):
    """The two files of an artifact. What is accepted must predict as the undamaged one."""

    def __init__(self, whole):
        super().__init__(whole)
        self.backbone = duotune.load_backbone("tiny", device="cpu")
        self.pixels = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
        self.expected = {}
        torch.manual_seed(0)
        for method in ("coop", "vpt", "linear_probe"):
            model = duotune.attach(self.backbone, method, NAMES).eval()
            model.save(whole / method)
            self.expected[method] = self._logits(model)

    def _logits(self, model):
        with torch.no_grad():
            return model(pixel_values=self.pixels)["logits"]

    def run(self, rng, folder):
        method = rng.choice(sorted(self.expected))
        target = folder / "artifact"
        shutil.copytree(self.whole / method, target)
        about, weights = target / "prompt.json", target / "prompt.safetensors"
        kind = rng.randrange(5)
        values = json.loads(about.read_text())
        if kind == 0:
            about.write_bytes(damaged_bytes(rng, about.read_bytes()))
        elif kind == 1:
            weights.write_bytes(damaged_bytes(rng, weights.read_bytes()))
        elif kind in (2, 3):
            about.write_bytes(written(rng, damaged_value(rng, values)))
        else:  # a foreign file with a digest that fits: shapes and values decide
            tensors = load_file(weights)
            key = rng.choice(sorted(tensors))
            odd = (torch.zeros(()), torch.zeros(1, 1, 1, 1, 1), torch.full_like(tensors[key].float(), math.nan), None)
            new = rng.choice(odd)
            tensors[key if rng.random() < 0.8 else "x" * 3000] = tensors[key].double().int() if new is None else new
            save_file(tensors, weights)
            values["sha256"] = hashlib.sha256(weights.read_bytes()).hexdigest()
            about.write_text(json.dumps(values))
        from duotune.artifacts import describe, load

        str(describe(target))
        model = load(target, self.backbone)
        if kind == 4:
            return None if self._logits(model).isfinite().all() else "logits that are not finite"
        changed = (
            json.loads(about.read_bytes().decode("utf-8-sig"))
            if about.read_bytes()[:2] not in (b"\xff\xfe",)
            else values
        )
        same = all(changed.get(k) == values[k] for k in ("class_names", "template", "config", "method"))
        if same and not torch.allclose(self._logits(model), self.expected[method], atol=1e-4):
            return "other logits than the undamaged artifact"
        return None


class FolderTarget(Target):
    """A Hugging Face folder of a CLIP, a GLIP or a Grounding DINO."""

    def __init__(self, whole):
        super().__init__(whole)
        assets = Path(duotune.__file__).parent / "assets"
        self.sources = [
            assets / "tiny-clip",
            assets / "tiny-glip",
            _small_clip(whole / "clip"),
            _small_dino(whole / "dino"),
        ]

    def run(self, rng, folder):
        source = rng.choice(self.sources)
        target = folder / "model"
        target.mkdir()
        files = [f for f in source.iterdir() if f.suffix in (".json", ".txt", ".safetensors")]
        for file in files:
            os.symlink(file, target / file.name)
        for _ in range(rng.choice((1, 1, 2))):
            file = target / rng.choice(sorted(f.name for f in files))
            content = file.read_bytes() if file.exists() else b""
            file.unlink(missing_ok=True)
            kind = rng.randrange(6)
            if kind == 0:
                continue
            if kind == 1:
                other = rng.choice(self.sources) / file.name
                file.write_bytes(other.read_bytes() if other.exists() else content[: rng.randrange(len(content) + 1)])
            elif file.suffix == ".json" and kind > 2:
                try:
                    file.write_bytes(written(rng, damaged_value(rng, json.loads(content))))
                except ValueError:
                    file.write_bytes(content)
            else:
                file.write_bytes(damaged_bytes(rng, content))
        backbone = duotune.load_backbone(str(target), device="cpu")
        if isinstance(backbone, DualEncoder):
            with torch.no_grad():
                size = backbone.image_size
                if size > 512:
                    return None
                logits = duotune.attach(backbone, "zero_shot", NAMES).eval()(pixel_values=torch.rand(1, 3, size, size))[
                    "logits"
                ]
            return None if logits.isfinite().all() or "safetensors" in str(files) else "logits that are not finite"
        backbone.caption(NAMES)
        return None


def _small_clip(folder: Path) -> Path:
    """tiny-clip with its tokenizer in the older files, and weights in bfloat16."""
    from transformers import AutoTokenizer, CLIPModel

    source = Path(duotune.__file__).parent / "assets" / "tiny-clip"
    CLIPModel.from_pretrained(source).to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    model = json.loads((source / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer.json").unlink()
    added = {"<|startoftext|>": 6087, "<|endoftext|>": 6088}
    (folder / "vocab.json").write_text(json.dumps({**model["vocab"], **added}))
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    shutil.copy(source / "preprocessor_config.json", folder)
    return folder


def _small_dino(folder: Path) -> Path:
    import sys

    tests = Path(__file__).parents[2] / "tests" / "detection"
    sys.path.insert(0, str(tests))
    try:
        from tiny_grounding_dino import write_folder
    finally:
        sys.path.remove(str(tests))
    return write_folder(folder)


class _Runs:
    """Pickled, it asks for a call that leaves a trace."""

    def __init__(self, call: Any, *args: Any):
        self.call, self.args = call, args

    def __reduce__(self):
        return self.call, self.args


def _evil(rng: random.Random, canary: str) -> Any:
    import subprocess

    code = f"open({canary!r}, 'w').close()"
    return rng.choice(
        (
            _Runs(os.system, f"touch {canary}"),
            _Runs(eval, code),
            _Runs(exec, code),
            _Runs(open, canary, "w"),
            _Runs(subprocess.call, ["touch", canary]),
            _Runs(os.mkdir, canary),
            _Runs(getattr, _Runs(__import__, "os"), "getcwd"),
            _Runs(torch.save, {}, canary),
            _Runs(os.symlink, "/", canary),
            _Runs(Path.touch, Path(canary)),
        )
    )


class PickleTarget(Target):
    """Checkpoints of others: OpenAI's, Dassl's, GLIP's; damaged, hostile, and of odd tensors."""

    def __init__(self, whole):
        super().__init__(whole)
        self.backbone = duotune.load_backbone("tiny", device="cpu")
        self.glip = duotune.load_backbone("tiny-glip", device="cpu")

    def run(self, rng, folder):
        from duotune.conversion import convert_openai_clip, import_dassl, import_sdpt
        from duotune.conversion.openai_clip import read_bpe
        from duotune.conversion.reading import read_archive, state_dict_of
        from duotune.models.glip.conversion import convert_glip_checkpoint

        path = folder / "run" / "prompt_learner" / "model.pth.tar-5"
        path.parent.mkdir(parents=True)
        value: dict[str, Any] = {
            "ctx": torch.rand(4, 128),
            "token_prefix": torch.rand(3, 1, 128),
            "token_suffix": torch.rand(3, 27, 128),
            "visual.conv1.weight": torch.rand(8, 3, 4, 4),
            "backbone.body.patch_embed.proj.weight": torch.rand(96, 3, 4, 4),
        }
        for _ in range(rng.choice((0, 1, 2))):
            odd = (
                torch.zeros(()),
                torch.zeros(1, 2, 1, 2, 1),
                torch.zeros(1).expand(2**32),
                torch.empty(0, 3),
                None,
                "x",
            )
            odd += (
                torch.zeros(2**20, dtype=torch.uint8).expand(4096, 2**20),
                10**29,
                [[[]]],
                torch.ones(2).to_sparse(),
            )
            value[rng.choice(sorted(map(str, value)))] = rng.choice(odd)
        if rng.random() < 0.4:
            value[rng.choice(("state_dict", "x", "epoch"))] = _evil(rng, os.environ["DUOTUNE_CANARY"])
        content = {"state_dict": value, "epoch": 5} if rng.random() < 0.7 else value
        kind = rng.randrange(6)
        if kind == 0:
            path.write_bytes(pickle.dumps(_evil(rng, os.environ["DUOTUNE_CANARY"]), protocol=rng.choice((0, 2, 4))))
        else:
            torch.save(content, path, _use_new_zipfile_serialization=rng.random() < 0.8)
        if kind == 1:
            self._bomb(rng, path)
        elif kind in (2, 3):
            path.write_bytes(damaged_bytes(rng, path.read_bytes()))
        elif kind == 4:
            self._repacked(rng, path)
        reader = rng.randrange(5)
        if reader == 0:
            table = state_dict_of(read_archive(path)) or {}
            return None if all(isinstance(v, torch.Tensor) for v in table.values()) else "no tensors"
        if reader == 1:
            model = import_dassl(folder / "run", self.backbone, NAMES, check_names=rng.random() < 0.5)
            tokens = model.method.artifact_state()["text.context.tokens"]
            return None if tokens.isfinite().all() and tokens.shape[-1] == 128 else "a context that is none"
        if reader == 2:
            vocabulary = folder / "vocabulary.gz"
            merges = gzip.compress("\n".join(["header", *(f"a{i} b{i}" for i in range(300))]).encode())
            bomb = gzip.compress(bytes(80 * 2**20), 1) if rng.random() < 0.05 else b""
            vocabulary.write_bytes(bomb or damaged_bytes(rng, merges))
            if rng.random() < 0.5:
                read_bpe(vocabulary, 514 + rng.choice((0, 299, 300)))
                return None
            convert_openai_clip(path, folder / "out", bpe=vocabulary)
        elif reader == 3:
            convert_glip_checkpoint(path, folder / "out", tokenizer=self.backbone.tokenizer)
        else:
            import_sdpt(path, self.glip, NAMES)
        return "a model out of nothing"

    @staticmethod
    def _bomb(rng, path):
        """An archive whose pickle is a bomb, or has a memo index that Python makes a table for."""
        memo = b"\x80\x02}q\x00r" + struct.pack("<I", rng.choice((2**28, 2**31, 2**32 - 1))) + b"."
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a/data.pkl", rng.choice((memo, bytes(2**20), b"(" * 10**6, b"\x80\x02]" + b"]" * 10**5)))
            archive.writestr("a/version", "3")

    @staticmethod
    def _repacked(rng, path):
        """The same archive with one entry altered."""
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            entries = {name: archive.read(name) for name in archive.namelist()}
        name = rng.choice(sorted(entries))
        entries[name] = damaged_bytes(rng, entries[name])
        with zipfile.ZipFile(path, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
            for key, value in entries.items():
                archive.writestr(key, value)


class CheckpointTarget(Target):
    """A folder of a training run with one file damaged. Resuming either refuses or ends in the same weights."""

    def __init__(self, whole):
        super().__init__(whole)
        self.backbone = duotune.load_backbone("tiny", device="cpu")
        for label, name in enumerate(NAMES):
            for split in ("train", "test"):
                (whole / "data" / split / name).mkdir(parents=True)
                for i in range(2):
                    _picture(10 * label + i).save(whole / "data" / split / name / f"{i}.png")
        self.data = load_dataset(str(whole / "data"))
        self._train(whole / "run", resume=None)
        last = sorted((whole / "run").glob("checkpoint-*"))
        self.checkpoint = last[0]
        self.expected = self._train(whole / "again", resume=self.checkpoint)

    def _train(self, out: Path, resume: Path | None) -> dict[str, torch.Tensor]:
        from duotune.training import PromptTrainer, PromptTrainingArguments

        model = duotune.attach(
            self.backbone, "coop", self.data.class_names, self.data.template, {"text_warmup_epochs": 0}
        )
        arguments = PromptTrainingArguments(
            output_dir=str(out),
            num_train_epochs=2,
            per_device_train_batch_size=3,
            dataloader_num_workers=0,
            disable_tqdm=True,
            save_strategy="epoch",
            logging_strategy="no",
            report_to=[],
        )
        trainer = PromptTrainer(model, arguments, self.data)
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        return {k: v.clone() for k, v in model.method.artifact_state().items()}

    def run(self, rng, folder):
        target = folder / self.checkpoint.name
        shutil.copytree(self.checkpoint, target)
        file = target / rng.choice(sorted(f.name for f in target.iterdir() if f.is_file()))
        kind = rng.randrange(4)
        if kind == 0:
            file.unlink()
        elif kind == 1 and file.suffix == ".json":
            file.write_bytes(written(rng, damaged_value(rng, json.loads(file.read_bytes()))))
        elif kind == 2 and file.suffix != ".safetensors":
            file.write_bytes(pickle.dumps(_evil(rng, os.environ["DUOTUNE_CANARY"]), protocol=2))
        else:
            file.write_bytes(damaged_bytes(rng, file.read_bytes()))
        if rng.random() < 0.4:  # whoever alters a file can write a manifest that fits it
            seal(target, int(target.name.rpartition("-")[2]))
            got = self._train(folder / "out", resume=target)
            return None if all(v.isfinite().all() for v in got.values()) else "weights that are not finite"
        got = self._train(folder / "out", resume=target)
        if any(not torch.equal(got[k], self.expected[k]) for k in self.expected):
            return f"other weights after {file.name} was changed"
        return None


TARGETS: dict[str, type[Target]] = {
    "image": ImageTarget,
    "json": JsonTarget,
    "yaml": YamlTarget,
    "csv": CsvTarget,
    "artifact": ArtifactTarget,
    "folder": FolderTarget,
    "pickle": PickleTarget,
    "checkpoint": CheckpointTarget,
}
__all__ = ["TARGETS", "DuotuneError", "Target"]
