"""Bad input: one line that says what was expected, what came and what to do; status 2; nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

ARTIFACT = ("prompt.json", "prompt.safetensors")


@pytest.fixture
def fails(duotune, tmp_path, left_behind):
    """fails(*argv, out="run") -> the error's line; the folder `out` of tmp_path must not hold a file afterwards."""

    def run(*argv: object, out: str = "run") -> str:
        error = duotune(*argv).error
        assert left_behind(tmp_path / out) == []
        return error

    return run


@pytest.fixture
def train(fails, few_steps, tmp_path):
    """train(*options) -> the line of a training that fails before it begins."""
    return lambda *options: fails("train", "--method", "coop", *few_steps, "--out", tmp_path / "run", *options)


def says(line: str, *pieces: object) -> None:
    missing = [str(piece) for piece in pieces if str(piece) not in line]
    assert not missing, f"{missing} not in {line!r}"


# names


def test_unknown_names_come_with_the_nearest_known(train, fails, tmp_path, few_steps, duotune):
    says(train("--method", "coob"), "unknown method 'coob'", "did you mean 'coop'?")
    says(train("--data", "oxford_pet"), "'oxford_pet'", "did you mean 'oxford_pets'?")
    says(train("--set", "num_context_token=3"), "did you mean 'num_context_tokens'?")
    says(train("--training", "weight_dekay=3"), "did you mean 'weight_decay'?")
    says(fails("train", "vlpp", "--out", tmp_path / "run"), "unknown recipe 'vlpp'", "did you mean 'vlp'?")
    says(train("--backbone", "tyny"), "unknown backbone 'tyny'", "did you mean 'tiny'?")
    says(train("--backbone", "openai/no-clip"), "no backbone", "not a folder, not embedded (tiny", "HF_HUB_OFFLINE")


@pytest.mark.parametrize("device", ["foo", "cuda:99"])
def test_devices_that_are_not_there(duotune, trained, picture_folder, tiny_clip_folder, device):
    zero_shot = ["evaluate", "--method", "zero_shot", "--backbone", tiny_clip_folder, "--data", picture_folder]
    evaluate = ["evaluate", trained("zero_shot"), "--data", picture_folder]
    for command in (zero_shot, evaluate, ["predict", trained("zero_shot"), picture_folder]):
        says(duotune(*command, "--device", device).error, f"no device '{device}'", "this machine has cpu")


def test_all_faults_of_a_configuration_at_once(duotune, tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("method: coop\nepoch: 3\nbackbone: 7\n")
    line = duotune("train", recipe, "--shots=-1", "--classes", "some", "--set", "x", "--out", tmp_path / "run").error
    says(line, "unknown recipe key 'epoch'; did you mean 'epochs'?", "backbone must be str, not 7", "no data is given")
    says(line, "shots must be at least 1", "classes must be one of all, base, new, not 'some'", "NAME=VALUE, got 'x'")
    recipe.write_text(
        "method: dpt\nsettings: {text_lr: 0, position: up, num_candidates: 2.5, deep: false, nonsense: 1}\n"
    )
    line = duotune(
        "train", recipe, "--template", "no braces", "--data", "oxford_pet", "--epochs", 0, "--out", tmp_path / "run"
    ).error
    for piece in (
        "no backbone is given",
        "did you mean 'oxford_pets'?",
        "epochs must be at least 1, not 0",
        "'no braces'",
    ):
        says(line, piece)
    says(line, "unknown setting of dpt 'nonsense'", "num_candidates must be int, not 2.5", "position must be one of")
    says(line, "text_lr must be positive, not 0", "needs deep visual prompts")
    assert not (tmp_path / "run").exists()


def test_recipes_that_are_none(duotune, tmp_path):
    for name, text, piece in [
        ("broken.yaml", "method: [coop", "is not valid YAML"),
        ("list.yaml", "- coop", "must hold `key: value` lines; got list"),
        ("empty.yaml", "", "got NoneType"),
        ("settings.yaml", "method: coop\nsettings: [1, 2]\n", "settings must be dict"),
    ]:
        (tmp_path / name).write_text(text)
        line = duotune("train", tmp_path / name, "--out", tmp_path / "run").error
        says(line, name, piece)
        assert ("no backbone is given" in line) == (name == "settings.yaml")  # of others it is not known
    says(duotune("train", tmp_path / "absent.yaml", "--out", tmp_path / "run").error, "no recipe file", "dpt")
    says(duotune("train", tmp_path, "--out", tmp_path / "run").error, "a recipe is a YAML file", tmp_path)


# folders and files that are not there


def test_missing_folders(train, duotune, tmp_path, tiny_clip_folder, picture_folder):
    absent = tmp_path / "absent"
    says(train("--data", absent), "no such file or folder", absent)
    says(train("--data", "oxford_pets", "--root", absent), "no such folder", absent)
    says(train("--data", "oxford_pets"), "needs root")
    says(duotune("predict", absent, picture_folder).error, absent, "prompt.json")
    says(duotune("show", absent).error, absent, "expected an artifact folder")
    says(duotune("evaluate", absent, "--data", picture_folder).error, absent)
    (tmp_path / "names.txt").write_text("cat\n")
    what = ["--backbone", tiny_clip_folder, "--out", tmp_path / "run", "--classes"]
    says(duotune("import", absent, *what, tmp_path / "names.txt").error, "no folder", absent)
    says(duotune("import", tmp_path, *what, absent).error, "no file", "one class name per line")
    says(duotune("convert", "openai-clip", absent, tmp_path / "run", "--tokenizer", tiny_clip_folder).error, absent)
    says(duotune("train", "--resume", "--out", tmp_path / "run").error, "nothing to resume")
    says(train("--out", ""), "--out is empty")
    says(train("--out", picture_folder / "train" / "red" / "0.png"), "is a file")
    assert not (tmp_path / "run").exists()


def test_a_backbone_folder_without_a_model(train, tmp_path):
    (tmp_path / "empty").mkdir()
    says(train("--backbone", tmp_path / "empty"), "config.json")


def test_a_split_file_that_names_absent_images(train, tmp_path, picture_folder):
    root = tmp_path / "datasets" / "dtd"
    (root / "images" / "red").mkdir(parents=True)
    shutil.copy(picture_folder / "train" / "red" / "0.png", root / "images" / "red" / "0.png")
    rows = [["red/0.png", 0, "red"], ["red/gone.png", 0, "red"]]
    (root / "split_zhou_DescribableTextures.json").write_text(json.dumps({"train": rows, "val": [], "test": rows[:1]}))
    says(train("--data", "dtd", "--root", tmp_path / "datasets"), "gone.png", "split_zhou_DescribableTextures.json")


# places to write to


def test_places_where_nothing_can_be_written(duotune, few_steps, tmp_path, trained, picture_folder, monkeypatch):
    """Before any work: neither data nor backbone are touched."""
    artifact = trained("coop")
    for name in ("duotune.data.load_dataset", "duotune.recipes.running.load_data", "duotune.conversion.import_dassl"):
        monkeypatch.setattr(name, lambda *_, **__: pytest.fail("work was done"))
    monkeypatch.setattr("duotune.conversion.convert_openai_clip", lambda *_, **__: pytest.fail("work was done"))
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "names.txt").write_text("cat\n")
    real = Path.mkdir

    def mkdir(path, *args, **kwargs):
        if "forbidden" in path.parts:  # tests may run as root, whom no permission stops
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    names = ["--backbone", "tiny", "--classes", tmp_path / "names.txt"]
    for place, reason in (("file/run", "Not a directory"), ("forbidden/run", "Permission denied")):
        out = tmp_path / place
        for command in (
            ["train", "--method", "coop", *few_steps, "--out", out],
            ["demo", "--out", out],
            ["evaluate", artifact, "--data", picture_folder, "--out", out / "result.json"],
            ["import", tmp_path, *names, "--out", out],
            ["convert", "openai-clip", tmp_path / "file", out / "clip", "--tokenizer", "x"],
        ):
            says(duotune(*command).error, "cannot write into", out, reason)
    evaluate = ["evaluate", artifact, "--data", picture_folder]
    says(duotune(*evaluate, "--out", tmp_path).error, "is a folder; expected a file to write")
    picture = next(path for path in Path(picture_folder).rglob("*.png"))
    before = picture.read_bytes()
    says(duotune(*evaluate, "--out", picture).error, "exists and is no JSON file")
    assert picture.read_bytes() == before
    for other in ('{"class_names": ["a"]}', '[{"accuracy": 1}]'):
        (tmp_path / "file").write_text(other)
        says(duotune(*evaluate, "--out", tmp_path / "file").error, "exists and is no result of evaluate")
        assert (tmp_path / "file").read_text() == other
    says(duotune("train", "--method", "coop", *few_steps, "--out", tmp_path / "file").error, "is a file")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "names.txt"]


def test_two_runs_into_one_folder(duotune, few_steps, tmp_path, left_behind):
    """The second is refused while the first lives; a first that was killed is in nobody's way."""
    run = tmp_path / "deep" / "run"
    code = (
        "import sys, time\nfrom duotune.recipes.claim import claimed\n"
        "with claimed(sys.argv[1]):\n    print('held', flush=True)\n    time.sleep(600)"
    )
    first = subprocess.Popen([sys.executable, "-c", code, str(run)], stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout.readline() == "held\n"
        argv = ["train", "--method", "zero_shot", *few_steps, "--out", run]
        says(duotune(*argv).error, f"another run (process {first.pid}) is writing into {run}", "wait for it")
        assert left_behind(run) == [".lock"]
    finally:
        first.kill()
        first.wait()
    assert (run / ".lock").read_text() == f"{first.pid}\n"
    assert duotune(*argv).status == 0
    assert ".lock" not in left_behind(run) and set(ARTIFACT) < set(left_behind(run))


def test_a_feature_cache_that_cannot_be_written_is_told_once(duotune, few_steps, tmp_path, trained, picture_folder):
    (tmp_path / "file").write_text("in the way")
    told = f"duotune: warning: features are not kept: cannot write to the feature cache {tmp_path / 'file'} ("
    train = ["train", "--method", "linear_probe", *few_steps, "--views", 1, "--out", tmp_path / "run"]
    evaluate = ["evaluate", trained("linear_probe"), "--data", picture_folder, "--workers", 0]
    for command in (train, evaluate):
        ran = duotune(*command, "--cache-dir", tmp_path / "file")
        assert ran.status == 0 and ran.err.startswith(told) and len(ran.err.splitlines()) == 1, ran.err


# files of others


def test_imports_of_what_does_not_fit(fails, tmp_path, tiny_clip_folder, tiny_clip):
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    part = tmp_path / "output" / "prompt_learner"
    part.mkdir(parents=True)
    file, whole = part / "model.pth.tar-5", torch.zeros(4, tiny_clip.text_width)
    command = ["import", part.parent, "--backbone", tiny_clip_folder, "--classes", tmp_path / "names.txt"]
    command += ["--out", tmp_path / "run"]
    torch.save({"state_dict": {"ctx": whole}}, file)
    says(fails(*command, "--num-candidates", 3), "num_candidates is of dpt", "holds coop")
    says(fails(*command, "--epoch", "x"), "no checkpoint of epoch x", "epochs there: 5")
    says(fails(*command, "--template", "x"), "must contain one '{}'")
    file.write_bytes(file.read_bytes()[:300])
    says(fails(*command), file, "is truncated")
    file.write_bytes(b"no checkpoint")
    says(fails(*command), file, "checkpoint")
    scalar = torch.tensor(1.0)
    for state, piece in (
        ({"ctx": whole[0]}, "ctx has shape (48,)"),
        ({"ctx": whole, "token_prefix": torch.zeros(3, 1, 48), "token_suffix": scalar}, "trained on 3 classes"),
        ({"ctx": whole[:0]}, "num_context_tokens must be at least 1"),
        ({"ctx": whole[:, :7]}, "text width 7 against 48"),
        ({"other": whole}, "lacks ctx"),
    ):
        torch.save({"state_dict": state}, file)
        says(fails(*command), piece)


def test_conversions_of_what_is_no_clip(fails, tmp_path):
    file = tmp_path / "file.pt"
    command = ["convert", "openai-clip", file, tmp_path / "run", "--bpe", tmp_path / "absent"]
    for content, piece in ((b"", "damaged"), (b"\x80\x02text", "of another kind"), (b"PK\x03\x04", "truncated")):
        file.write_bytes(content)
        line = fails(*command)
        says(line, file, piece)
        assert "weights_only" not in line
    torch.save({"ctx": torch.zeros(3)}, file)
    says(fails(*command), file, "lacks 8 of the tensors of OpenAI's CLIP")


# classes and shots


def test_class_names_that_the_tokenizer_reads_the_same(train, tmp_path, picture_folder):
    for name in ("Fox", "fox"):
        (tmp_path / "twice" / name).mkdir(parents=True)
        for i in range(4):
            shutil.copy(picture_folder / "train" / "red" / f"{i}.png", tmp_path / "twice" / name)
    says(train("--data", tmp_path / "twice", "--shots", 2), "it reads the same in 'Fox' and 'fox'", "rename one")


def test_duplicate_class_names(train, tmp_path, picture_folder):
    for name in ("red_fox", "red fox"):
        (tmp_path / "twice" / name).mkdir(parents=True)
        for i in range(4):
            shutil.copy(picture_folder / "train" / "red" / f"{i}.png", tmp_path / "twice" / name)
    says(train("--data", tmp_path / "twice"), "must be different", "red fox", "red_fox")


def test_a_class_with_fewer_images_than_shots(train):
    says(train("--shots", 9), "9 shots", "red (6)", "fewer")


def test_more_context_than_the_text_tower_holds(train):
    says(train("--set", "num_context_tokens=99"), "99 context tokens", "holds 40", "use at most")


def test_classes_that_the_artifact_cannot_take(duotune, trained, picture_folder):
    other = duotune("evaluate", trained("linear_probe"), "--data", picture_folder, "--classes", "new")
    says(other.error, "linear probe", "cannot classify into classes it was not trained on")


def test_a_split_without_images_names_those_there_are(duotune, tmp_path, picture_folder):
    import shutil

    shutil.copytree(picture_folder / "train", tmp_path / "some/train")
    shutil.copytree(picture_folder / "test", tmp_path / "some/test")
    argv = ["evaluate", "--method", "zero_shot", "--backbone", "tiny", "--data", str(tmp_path / "some")]
    says(duotune(*argv, "--split", "val").error, "has no val images", "24 train, 20 test")


def test_base_to_new_of_an_artifact_that_knows_all_classes(duotune, trained, picture_folder):
    line = duotune("evaluate", trained("coop"), "--data", picture_folder, "--base-to-new").error
    says(line, "--base-to-new needs an artifact of the", "train it with --classes base")


def test_the_new_half_of_one_class(train, tmp_path):
    (tmp_path / "one" / "cat").mkdir(parents=True)
    for number in range(6):
        Image.new("RGB", (9, 9)).save(tmp_path / "one" / "cat" / f"{number}.png")
    says(train("--data", tmp_path / "one", "--shots", 2, "--classes", "new"), "one class alone", "use all classes")


# values


@pytest.mark.parametrize(
    ("options", "pieces"),
    [
        (["--seed=-1"], ["seed must be at least 0", "not -1"]),
        (["--seed", 10**20], ["below 2^32"]),
        (["--training", "eval_strategy=foo"], ["training arguments do not fit", "'epoch'"]),
        (["--training", "push_to_hub=true"], ["nothing is uploaded"]),
        (["--training", "dataloader_num_workers=-1"], ["must be at least 0, not -1"]),
        (["--training", "optim=foo"], ["training arguments do not fit"]),
        (["--training", "output_dir=x", "--training", "learning_rate=1"], ["is set by --out", "--set text_lr"]),
    ],
)
def test_values_that_transformers_or_nobody_reads(train, options, pieces):
    says(train(*options), *pieces)


def test_overwrite_spares_the_checkpoints_of_a_run_that_cannot_begin(trained, duotune, few_steps, tmp_path):
    run = shutil.copytree(trained("coop"), tmp_path / "run")
    before = sorted(run.rglob("*"))
    argv = ["train", "--method", "coop", *few_steps, "--out", run, "--overwrite"]
    says(duotune(*argv, "--training", "optim=foo").error, "do not fit")
    says(duotune(*argv, "--shots", 999).error, "999 shots")
    assert sorted(run.rglob("*")) == before


# artifacts


@pytest.fixture
def broken_artifact(trained, tmp_path):
    """A copy of an artifact, to be broken."""
    folder = tmp_path / "artifact"
    folder.mkdir()
    for name in ARTIFACT:
        shutil.copy(trained("coop") / name, folder)
    return folder


def test_an_artifact_of_another_backbone(duotune, trained, picture_folder, tiny_clip_folder, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(tiny_clip_folder, other)
    weights = load_file(other / "model.safetensors")
    weights["logit_scale"] += 1e-3  # one number of the model is enough
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    for command in (
        ["predict", trained("coop"), picture_folder],
        ["evaluate", trained("coop"), "--data", picture_folder],
    ):
        says(duotune(*command, "--backbone", other).error, "fingerprint", other)


def test_truncated_and_foreign_weights(duotune, broken_artifact, picture_folder):
    weights = broken_artifact / "prompt.safetensors"
    whole = weights.read_bytes()
    for content in (whole[:-7], b"", b"PK\x03\x04 a zip", whole[:-1] + bytes([whole[-1] ^ 1])):
        weights.write_bytes(content)
        says(duotune("predict", broken_artifact, picture_folder).error, weights, "truncated or foreign")
        says(duotune("show", broken_artifact).error, weights)
    weights.unlink()
    says(duotune("predict", broken_artifact, picture_folder).error, "has no prompt.safetensors")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 99}', '{"format": 1}', '{"format": 1, "class_names": 3}'])
def test_foreign_descriptions(duotune, broken_artifact, picture_folder, text):
    (broken_artifact / "prompt.json").write_text(text)
    says(duotune("predict", broken_artifact, picture_folder).error, broken_artifact)


def test_the_artifact_of_a_backbone_that_has_moved(duotune, broken_artifact, picture_folder):
    description = json.loads((broken_artifact / "prompt.json").read_text())
    description["backbone"] = str(broken_artifact / "gone")
    (broken_artifact / "prompt.json").write_text(json.dumps(description))
    says(duotune("predict", broken_artifact, picture_folder).error, "cannot load the backbone", "backbone")


# images


def enormous_png(path: Path) -> None:
    """A well-formed header of 100,000 x 100,000 pixels, and next to no data."""
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b""))


@pytest.fixture
def damaged(tmp_path, picture_folder):
    """A copy of the pictures with one truncated and one enormous training image."""
    folder = tmp_path / "damaged"
    shutil.copytree(picture_folder, folder)
    file = folder / "train" / "red" / "0.png"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    enormous_png(folder / "train" / "blue" / "0.png")
    return folder


def test_corrupt_and_enormous_training_images(train, damaged, duotune, few_steps, tmp_path):
    says(train("--data", damaged, "--shots", 6), "2 of 24 images cannot be read", "max_broken_share=0.01")
    # up to a share they are named and skipped
    allowed = ["--data", damaged, "--shots", 6, "--training", "max_broken_share=0.5"]
    ran = duotune("train", "--method", "coop", *few_steps, "--out", tmp_path / "run", *allowed)
    skipped = [line for line in ran.out.splitlines() if line.startswith("skipped: cannot read the image")]
    assert ran.status == 0 and ran.err == ""
    assert len(skipped) == 2 and all(any(name in line for line in skipped) for name in ("red/0.png", "blue/0.png"))


def test_corrupt_and_enormous_images_to_classify(duotune, trained, damaged):
    folder = damaged / "train"
    for name in ("red/0.png", "blue/0.png"):
        ran = duotune("predict", trained("coop"), folder / name)
        says(ran.error, "cannot read the image", name)
        assert ran.out == ""
    ran = duotune("predict", trained("coop"), folder)
    says(ran.error, "blue/0.png", "1 more cannot be read", "22 images are classified above")
    assert len(ran.out.splitlines()) == 2 + 22
    rows = json.loads(duotune("predict", trained("coop"), folder, "--json").out)
    assert [Path(row["source"]).name for row in rows if row["error"]] == ["0.png", "0.png"] and len(rows) == 24


def test_images_to_classify_that_are_none(duotune, trained, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty").mkdir()
    says(duotune("predict", trained("coop"), tmp_path / "text.png").error, "text.png", "not a picture")
    says(duotune("predict", trained("coop"), tmp_path / "empty").error, "holds no picture")
    says(duotune("predict", trained("coop"), tmp_path / "gone.png").error, "gone.png", "no such file")
    says(duotune("predict", trained("coop"), tmp_path, "--top-k", 0).error, "top_k")


def test_a_test_image_that_broke_after_training(duotune, trained, tmp_path, picture_folder):
    shutil.copytree(picture_folder, tmp_path / "pictures")
    (tmp_path / "pictures" / "test" / "red" / "0.png").write_bytes(b"")
    where = ["--data", tmp_path / "pictures", "--workers", 0]
    says(duotune("evaluate", trained("coop"), *where).error, "1 of 20 images cannot be read", "red/0.png")


# while training


def test_a_loss_that_is_not_finite(duotune, few_steps, tmp_path, left_behind):
    argv = ["train", "--method", "coop", *few_steps, "--out", tmp_path / "run", "--epochs", 4]
    line = duotune(*argv, "--set", "text_lr=1e38", "--set", "text_warmup_epochs=1").error
    says(line, "loss", "try lower learning rates")
    left = left_behind(tmp_path / "run")
    assert not set(ARTIFACT) & set(left)
    # the checkpoint from before is whole, and the line names it
    good = tmp_path / "run" / "checkpoints" / "checkpoint-2"
    says(line, good)
    assert (good / "trainer_state.json").is_file() and (good / "model.safetensors").is_file()


def no_space_for(suffix: str, monkeypatch):
    """Writing a file whose name ends in `suffix` fails as on a full disk."""
    real = os.replace

    def replace(source, target):
        if str(target).endswith(suffix):
            raise OSError(28, "No space left on device", str(target))
        return real(source, target)

    monkeypatch.setattr(os, "replace", replace)


def test_no_space_for_the_artifact(duotune, few_steps, tmp_path, monkeypatch, left_behind):
    no_space_for("prompt.safetensors", monkeypatch)
    argv = ["train", "--method", "coop", *few_steps, "--out", tmp_path / "run"]
    says(duotune(*argv).error, "No space left", "free some space")
    left = left_behind(tmp_path / "run")
    assert not set(ARTIFACT) & set(left) and not [name for name in left if "part" in name or "tmp" in name]
    monkeypatch.undo()
    assert duotune("train", "--resume", "--out", tmp_path / "run").status == 0


def test_no_space_for_results(duotune, trained, picture_folder, tmp_path, monkeypatch, left_behind):
    no_space_for("result.json", monkeypatch)
    where = ["--data", picture_folder, "--workers", 0, "--out", tmp_path / "result.json"]
    says(duotune("evaluate", trained("coop"), *where).error, "no space left", "result.json")
    assert left_behind(tmp_path) == []


# options that do not fit together


@pytest.mark.parametrize(
    ("options", "piece"),
    [
        ([], "either an artifact folder or --method zero_shot"),
        (["--method", "zero_shot"], "needs --backbone"),
        (["x", "--template", "a {}"], "an artifact has its own template"),
        (["x", "--base-to-new", "--classes", "new"], "--base-to-new takes an artifact and all classes"),
        (["x", "--batch-size", "0"], "--batch-size must be at least 1, not 0"),
    ],
)
def test_evaluate_options_that_do_not_fit(duotune, options, piece):
    says(duotune("evaluate", *options, "--data", "x").error, piece)


def test_an_ensemble_that_the_data_does_not_have(duotune, tiny_clip_folder, picture_folder):
    zero_shot = ["--method", "zero_shot", "--backbone", tiny_clip_folder, "--data", picture_folder]
    says(duotune("evaluate", *zero_shot, "--ensemble").error, "no list of templates")


def test_enormous_pictures_are_refused_by_their_header(tmp_path):
    """A guard of the helper above: the file is one that Pillow opens."""
    enormous_png(tmp_path / "x.png")
    Image.MAX_IMAGE_PIXELS, limit = None, Image.MAX_IMAGE_PIXELS
    try:
        with Image.open(tmp_path / "x.png") as image:
            assert image.size == (100_000, 100_000)
    finally:
        Image.MAX_IMAGE_PIXELS = limit


@pytest.mark.parametrize("command", ["evaluate", "predict", "show", "demo", "list"])
def test_commands_that_are_not_shared_refuse_a_launcher(duotune, monkeypatch, tmp_path, command):
    """Each process would print and write all of it."""
    words = {"evaluate": ["x", "--data", "x"], "predict": ["x", "x"], "show": ["x"], "demo": ["--out", tmp_path / "d"]}
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    says(duotune(command, *words.get(command, [])).error, "2 processes", f"`{command}`", "start one")
    monkeypatch.setenv("RANK", "1")
    ran = duotune(command, *words.get(command, []))
    assert (ran.status, ran.out, ran.err) == (2, "", "") and not (tmp_path / "d").exists()
