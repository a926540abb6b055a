import shutil
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_openai import BPE, CLASS_NAMES, DATA, Sizes, images, openai_state_dict

from duotune.backbones import load_backbone
from duotune.conversion import convert_openai_clip, import_dassl
from duotune.conversion.dassl import DATASET_NAMES, read_dassl
from duotune.data import DATASETS
from duotune.errors import ArtifactError, ConfigError

EUROSAT, DTD = "a centered satellite photo of {}.", "{} texture."
CASES = {
    "coop": ({}, "coop", dict(num_context_tokens=4, class_specific=False, position="end")),
    "coop_class_specific_middle": (
        dict(position="middle"),
        "coop",
        dict(num_context_tokens=3, class_specific=True, position="middle"),
    ),
    "vpt": (dict(template=EUROSAT), "vpt", dict(num_visual_tokens=3, deep=True)),
    "vlp_front": (dict(position="front"), "vlp", dict(num_context_tokens=3, position="front", num_visual_tokens=3)),
    "dpt": (dict(template=EUROSAT, num_candidates=3), "dpt", dict(class_aware_from=2, num_candidates=3)),
    "dpt_all_layers": (
        dict(template=DTD),
        "dpt",
        dict(class_aware_from=1, num_candidates=10, num_extra_tokens=10, num_visual_tokens=3),
    ),
}


@pytest.fixture(scope="session")
def openai_folder(tmp_path_factory) -> Path:
    """The CLIP of the authors' run, converted."""
    home = tmp_path_factory.mktemp("openai")
    torch.save(openai_state_dict(), home / "clip.pt")
    return convert_openai_clip(home / "clip.pt", home / "hf", bpe=BPE)


@pytest.fixture(scope="session")
def openai_clip(openai_folder):
    return load_backbone(str(openai_folder), device="cpu")


@pytest.fixture
def run(tmp_path):
    """A copy of a checkpoint folder that a test may change."""

    def copy(case: str) -> Path:
        return Path(shutil.copytree(DATA / "dassl" / case, tmp_path / case))

    return copy


def change(file: Path, **values) -> None:
    """Rewrite a checkpoint's state dict: None drops a tensor."""
    content = torch.load(file, weights_only=False)
    for name, value in values.items():
        content["state_dict"].pop(name.replace("__", "."), None)
        if value is not None:
            content["state_dict"][name.replace("__", ".")] = value
    torch.save({"state_dict": content["state_dict"], "epoch": content["epoch"]}, file)


def logits_of(model) -> torch.Tensor:
    with torch.no_grad():
        return model(images(6))["logits"]


def relative(got: torch.Tensor, expected: torch.Tensor) -> float:
    return ((got - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_the_authors_code(openai_clip, case):
    given, method, config = CASES[case]
    model = import_dassl(DATA / "dassl" / case, openai_clip, CLASS_NAMES, **given)
    assert model.method_name == method and not model.training
    assert config.items() <= model.method.config.to_dict().items()
    expected = torch.from_numpy(np.load(DATA / "dassl" / case / "logits.npz")["logits"])
    assert relative(logits_of(model), expected) < 1e-5
    assert expected.std() > 0.5  # the classes are told apart


def test_every_fixture_is_tested():
    assert sorted(CASES) == sorted(p.name for p in (DATA / "dassl").iterdir())


@pytest.mark.parametrize("case", CASES)
def test_every_learnt_tensor_matters(openai_clip, run, case):
    """Changing any one tensor that prediction reads changes the logits: none is dropped on the way."""
    given, expected = CASES[case][0], np.load(DATA / "dassl" / case / "logits.npz")["logits"]
    for file in sorted(run(case).glob("*/model.pth.tar-*")):
        original, folder = file.read_bytes(), file.parent.parent
        for name, tensor in torch.load(file, weights_only=False)["state_dict"].items():
            if name.startswith(("token_", "lns.", "classfiers.")) or tensor.numel() == 0:
                continue
            noise = torch.from_numpy(np.random.RandomState(3).standard_normal(tuple(tensor.shape)))
            change(file, **{name.replace(".", "__"): tensor + noise})
            changed = logits_of(import_dassl(folder, openai_clip, CLASS_NAMES, **given))
            assert relative(changed, torch.from_numpy(expected)) > 1e-4, name
            file.write_bytes(original)


def test_the_folder_by_name_and_the_artifact_after(openai_folder, tmp_path):
    from duotune.artifacts import load

    model = import_dassl(DATA / "dassl/dpt", str(openai_folder), CLASS_NAMES, EUROSAT, num_candidates=3)
    model.save(tmp_path / "artifact")
    again = load(tmp_path / "artifact")
    assert relative(logits_of(again), logits_of(model)) < 2e-3  # an artifact may be stored in half precision
    assert again.class_names == CLASS_NAMES


def test_training_can_go_on_from_an_import(openai_clip):
    model = import_dassl(DATA / "dassl/dpt", openai_clip, CLASS_NAMES, EUROSAT, num_candidates=5).train()
    found = read_dassl(DATA / "dassl/dpt").class_aware
    assert torch.equal(model.method.aux[0].classifier.weight, found["classfiers.0.weight"])
    assert torch.equal(model.method.aux[0].norm.bias, found["lns.0.bias"])
    model(images(6), labels=torch.arange(6) % 5)["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.method.parameters())


def test_other_classes_after_the_import(openai_clip):
    model = import_dassl(DATA / "dassl/coop", openai_clip, CLASS_NAMES)
    before = logits_of(model)
    model.set_classes(["frog", *CLASS_NAMES[1:]])
    assert torch.allclose(logits_of(model)[:, 1:], before[:, 1:], atol=1e-5)
    assert not torch.allclose(logits_of(model)[:, 0], before[:, 0], atol=1e-2)


@pytest.mark.parametrize("stacked", [True, False], ids=["(1, P, d)", "(P, d)"])
def test_shallow_prompts_are_known_by_their_shape(openai_clip, run, stacked):
    folder = run("vpt")
    file = next(folder.glob("*/model.pth.tar-*"))
    tokens = read_dassl(folder).visual["ctx"][:1] * 2
    change(file, ctx=tokens if stacked else tokens[0])
    model = import_dassl(folder, openai_clip, CLASS_NAMES, EUROSAT)
    assert model.method.config.deep is False
    assert torch.equal(model.method.visual.prompts.tokens, tokens)


def test_epochs(openai_clip, run):
    folder = run("vlp_front")
    for part in folder.iterdir():
        if part.is_dir():
            shutil.copy(part / "model.pth.tar-60", part / "model.pth.tar-5")
            shutil.copy(part / "model.pth.tar-60", part / "model-best.pth.tar")
    assert read_dassl(folder).epoch == 60
    assert read_dassl(folder, 5).epoch == 5 and read_dassl(folder, "best").epoch == "best"
    shutil.copy(folder / "prompt_learner/model.pth.tar-60", folder / "prompt_learner/model.pth.tar-100")
    assert read_dassl(folder).epoch == 60  # the last that all parts have: the run stopped while it saved
    with pytest.raises(ArtifactError, match="no checkpoint of epoch 7 .* epochs there: 5, 60, best"):
        import_dassl(folder, openai_clip, CLASS_NAMES, epoch=7)


def test_settings_from_the_log(openai_clip, run):
    folder = run("dpt")
    log = (
        "** Config **\nDATASET:\n  NUM_SHOTS: 1\n  NAME: EuroSAT\nINPUT:\n  SIZE: (224, 224)\n"
        "TRAINER:\n  COOP:\n    CLASS_TOKEN_POSITION: end\n  NAME: DPT\n  SELECTED_COVPT:\n    CPN: 3\n"
    )
    (folder / "log.txt").write_text(log)
    expected = torch.from_numpy(np.load(folder / "logits.npz")["logits"])
    model = import_dassl(folder, openai_clip, CLASS_NAMES, EUROSAT)
    assert model.method.config.num_candidates == 3 and relative(logits_of(model), expected) < 1e-5
    (folder / "log.txt").write_text(log.replace("CLASS_TOKEN_POSITION: end", "CLASS_TOKEN_POSITION: middle"))
    assert import_dassl(folder, openai_clip, CLASS_NAMES, EUROSAT).method.config.position == "middle"
    model = import_dassl(folder, openai_clip, CLASS_NAMES, EUROSAT, position="end", num_candidates=4)
    assert (model.method.config.position, model.method.config.num_candidates) == ("end", 4)
    # the template of the data set that the log names
    (folder / "log.txt").write_text(log)
    model = import_dassl(folder, openai_clip, CLASS_NAMES)
    assert model.method.template == EUROSAT and relative(logits_of(model), expected) < 1e-5
    (folder / "log.txt").write_text(log.replace("EuroSAT", "OurOwn"))
    with pytest.raises(ArtifactError, match="dpt needs the template of its run .data set OurOwn."):
        import_dassl(folder, openai_clip, CLASS_NAMES)
    (folder / "log.txt").unlink()
    with pytest.raises(ArtifactError, match="dpt needs the template of its run, which the files do not hold"):
        import_dassl(folder, openai_clip, CLASS_NAMES)


def test_data_sets_of_the_authors_have_their_templates():
    special = {
        "DescribableTextures": DTD,
        "EuroSAT": EUROSAT,
        "FGVCAircraft": "a photo of a {}, a type of aircraft.",
        "Food101": "a photo of {}, a type of food.",
        "OxfordFlowers": "a photo of a {}, a type of flower.",
        "OxfordPets": "a photo of a {}, a type of pet.",
        "UCF101": "a photo of a person doing {}.",
    }
    found = {theirs: DATASETS.get(ours).template for theirs, ours in DATASET_NAMES.items()}
    assert found == {**dict.fromkeys(DATASET_NAMES, "a photo of a {}."), **special}
    assert len(found) == len(set(DATASET_NAMES.values())) == 15


def test_class_names_are_checked(openai_clip):
    def take(names, **more):
        return import_dassl(DATA / "dassl/coop", openai_clip, names, **more)

    swapped = ["big dog", "cat", *CLASS_NAMES[2:]]
    with pytest.raises(ArtifactError, match="class 0 of .* is not 'big dog', it is 'cat'"):
        take(swapped)
    with pytest.raises(ArtifactError, match="class 4 of .* is not 'type', nor any other"):
        take([*CLASS_NAMES[:4], "type"])
    with pytest.raises(ArtifactError, match="class 0 of .* is not 'cat frog'"):
        take(["cat frog", *CLASS_NAMES[1:]])
    with pytest.raises(ArtifactError, match="trained on 5 classes, got 3 names"):
        take(CLASS_NAMES[:3])
    assert take(swapped, check_names=False).class_names == tuple(swapped)
    take(["CAT", "big dog", *CLASS_NAMES[2:]])  # spellings with the same tokens are the same class
    with pytest.raises(ArtifactError, match="trained on 5 classes"):  # known from the classifier too
        import_dassl(DATA / "dassl/dpt", openai_clip, CLASS_NAMES[:4], EUROSAT)


def test_another_backbone_is_named(tiny_clip, openai_clip, tmp_path):
    with pytest.raises(ArtifactError, match=r"another backbone than .*tiny-random-clip: text width 64 against 48"):
        import_dassl(DATA / "dassl/coop", tiny_clip, CLASS_NAMES)
    with pytest.raises(ArtifactError, match="vision layers 2 against 3"):
        import_dassl(DATA / "dassl/vpt", tiny_clip, CLASS_NAMES, EUROSAT)
    with pytest.raises(ArtifactError, match="text width 64 against 48; vision layers 2 against 3"):
        import_dassl(DATA / "dassl/dpt", tiny_clip, CLASS_NAMES, EUROSAT)
    # same sizes, other weights
    torch.save(openai_state_dict(Sizes(), seed=5), tmp_path / "clip.pt")
    twin = load_backbone(str(convert_openai_clip(tmp_path / "clip.pt", tmp_path / "hf", bpe=BPE)), device="cpu")
    with pytest.raises(ArtifactError, match="another backbone .* the embedding of the start token differs"):
        import_dassl(DATA / "dassl/coop", twin, CLASS_NAMES)


def test_wrong_folders_are_named(openai_clip, run, tmp_path):
    def fails(folder, message):
        with pytest.raises(ArtifactError, match=message):
            import_dassl(folder, openai_clip, CLASS_NAMES, EUROSAT)

    fails(tmp_path / "absent", "no folder .*absent")
    (tmp_path / "bare/prompt_learner").mkdir(parents=True)
    fails(tmp_path / "bare", r"holds no checkpoint; expected prompt_learner/model\.pth\.tar-N")
    fails(DATA / "dassl/coop/prompt_learner", "one part of a run; give the folder above")
    folder = run("dpt")
    shutil.rmtree(folder / "image_encoder.transformer.ctx_learner")
    fails(folder, "extractor, prompt_learner, which is no known method")
    (folder / "MultiModalPromptLearner").mkdir()
    (folder / "MultiModalPromptLearner/model.pth.tar-5").write_bytes(b"")
    fails(folder, "MultiModalPromptLearner.* no known method")


def test_damaged_files_are_named(openai_clip, run):
    def fails(case, part, message, damage):
        folder = run(case)
        damage(next((folder / part).glob("model.pth.tar-*")))
        with pytest.raises(ArtifactError, match=message):
            import_dassl(folder, openai_clip, CLASS_NAMES, EUROSAT)
        shutil.rmtree(folder)

    text, aware = "prompt_learner", "image_encoder.transformer.extractor"
    fails("coop", text, "tar-50 is truncated", lambda f: f.write_bytes(f.read_bytes()[:3000]))
    fails("coop", text, "holds no state_dict", lambda f: torch.save([1, 2], f))
    fails("coop", text, "lacks ctx; it holds token_prefix", lambda f: change(f, ctx=None))
    fails("coop", text, "ctx has shape", lambda f: change(f, ctx=torch.ones(3)))
    fails("coop", text, "NaN or infinity", lambda f: change(f, ctx=torch.full((4, 64), float("nan"))))
    fails("coop", text, "of CoCoOp", lambda f: change(f, meta_net__linear1__weight=torch.ones(2, 2)))
    fails("dpt", aware, r"lacks attns\.0\.kmlp\.weight", lambda f: change(f, attns__0__kmlp__weight=None))
    fails("dpt", aware, "width of the joint space 20", lambda f: change(f, meta_nets__0__weight=torch.ones(64, 20)))
    fails("dpt", aware, "query.weight has shape .7, 64", lambda f: change(f, attns__0__qmlp__weight=torch.ones(7, 64)))
    fails("dpt", aware, "different runs, for .3, 5.", lambda f: change(f, classfiers__0__weight=torch.ones(3, 64)))


def test_files_without_training_leftovers(openai_clip, run):
    """Without classifiers and name embeddings, as the authors' loader drops them, the logits are the same."""
    folder = run("dpt")
    change(next((folder / "image_encoder.transformer.extractor").glob("model*")), classfiers__0__weight=None)
    change(next((folder / "prompt_learner").glob("model*")), token_prefix=None, token_suffix=None)
    expected = torch.from_numpy(np.load(folder / "logits.npz")["logits"])
    model = import_dassl(folder, openai_clip, CLASS_NAMES, EUROSAT, num_candidates=3)
    assert relative(logits_of(model), expected) < 1e-5
    assert read_dassl(folder).num_classes is None


def test_a_run_on_several_gpus(openai_clip, run):
    folder = run("coop")
    file = folder / "prompt_learner/model.pth.tar-50"
    state = torch.load(file, weights_only=False)["state_dict"]
    torch.save({"state_dict": OrderedDict((f"module.{k}", v) for k, v in state.items()), "epoch": 50}, file)
    expected = torch.from_numpy(np.load(folder / "logits.npz")["logits"])
    assert relative(logits_of(import_dassl(folder, openai_clip, CLASS_NAMES)), expected) < 1e-5


def test_bad_settings_are_the_methods_own_errors(openai_clip):
    with pytest.raises(ConfigError, match="position must be one of end, middle, front"):
        import_dassl(DATA / "dassl/coop", openai_clip, CLASS_NAMES, position="back")


def test_settings_that_the_files_do_not_hold(openai_clip):
    more = {"guidance_epochs": 7, "aux_loss_weight": 0.5, "text_lr": 0.01}
    model = import_dassl(DATA / "dassl/dpt", openai_clip, CLASS_NAMES, EUROSAT, num_candidates=3, **more)
    assert {**more, "class_aware_from": 2}.items() <= model.method.config.to_dict().items()
    expected = torch.from_numpy(np.load(DATA / "dassl/dpt/logits.npz")["logits"])
    assert relative(logits_of(model), expected) < 1e-5
    import_dassl(DATA / "dassl/dpt", openai_clip, CLASS_NAMES, EUROSAT, num_candidates=3, class_aware_from=2)
    with pytest.raises(ConfigError, match="class_aware_from is 2 in .*dpt, not 1; leave it out"):
        import_dassl(DATA / "dassl/dpt", openai_clip, CLASS_NAMES, EUROSAT, class_aware_from=1)
    with pytest.raises(ConfigError, match="unknown setting of DPTConfig 'guidance'"):
        import_dassl(DATA / "dassl/dpt", openai_clip, CLASS_NAMES, EUROSAT, guidance=1)
