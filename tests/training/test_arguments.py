"""Changed defaults are the documented ones; faults are named together."""

import dataclasses

import pytest
from transformers import TrainingArguments

from duotune.errors import ConfigError
from duotune.training import PromptTrainingArguments, arguments


def test_every_changed_default_and_new_setting_is_documented(tmp_path):
    base = {f.name: f.default for f in dataclasses.fields(TrainingArguments)}
    ours = {f.name: f.default for f in dataclasses.fields(PromptTrainingArguments)}
    changed = [name for name, default in ours.items() if name not in base or base[name] != default]
    assert len(changed) > 15
    undocumented = [name for name in changed if name not in PromptTrainingArguments.__doc__]
    assert undocumented == []
    args = PromptTrainingArguments(output_dir=str(tmp_path))
    assert (args.optim, args.weight_decay, args.sgd_momentum, args.max_grad_norm) == ("sgd", 5e-4, 0.9, 0.0)
    assert args.report_to == [] and not args.push_to_hub


def test_metric_for_best_sets_transformers_settings(tmp_path):
    args = PromptTrainingArguments(output_dir=str(tmp_path), metric_for_best="accuracy")
    assert args.load_best_model_at_end and args.greater_is_better and args.eval_strategy == "epoch"
    assert not PromptTrainingArguments(output_dir=str(tmp_path), metric_for_best="loss").greater_is_better


def test_all_faults_at_once(tmp_path):
    with pytest.raises(ConfigError) as caught:
        PromptTrainingArguments(
            output_dir=str(tmp_path), views=-1, cache_gb=0, num_shots=-2, max_broken_share=2, metric_for_best="f1"
        )
    assert len(caught.value.faults) == 5
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["foo", ["tensorboard", "foo"]])
def test_an_unknown_place_to_report_to(tmp_path, name):
    with pytest.raises(ConfigError, match="report_to must be none, all or one of .*tensorboard.*, not 'foo'"):
        PromptTrainingArguments(output_dir=str(tmp_path), report_to=name)


def test_tensorboard_that_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(arguments, "get_available_reporting_integrations", lambda: [])
    with pytest.raises(ConfigError, match="report_to='tensorboard' needs the package tensorboard"):
        PromptTrainingArguments(output_dir=str(tmp_path), report_to="tensorboard")


def test_values_that_would_fail_in_the_middle_of_a_run(tmp_path):
    wrong = {"per_device_eval_batch_size": 0, "gradient_accumulation_steps": 0, "dataloader_num_workers": -1}
    wrong |= {"data_seed": -1, "weight_decay": float("nan"), "cache_gb": float("nan")}
    with pytest.raises(ConfigError) as caught:
        PromptTrainingArguments(output_dir=str(tmp_path), **wrong)
    assert sorted(fault.split()[0] for fault in caught.value.faults) == sorted(wrong)
