"""A method from outside the package: task residuals (arXiv 2211.10277), registered, trained, saved and loaded.

logits = exp(logit_scale) · cos(frozen image, t + α x)      t: template text features, x: learnt, starts at zero
python examples/third_party_method.py runs/residual
"""

import sys
from dataclasses import dataclass

import torch
import torch.nn.functional as F

import duotune
from duotune.methods import METHODS
from duotune.methods.base import ClassifierOutput, Method, MethodConfig, ParamGroup
from duotune.methods.common import cosine_logits, frozen_image_features, template_features


@dataclass
class TaskResidualConfig(MethodConfig):
    """scale: α. lr: of SGD."""

    scale: float = 0.5
    lr: float = 0.1
    bound_to_classes = True  # one residual for each class: other classes are refused


class TaskResidual(Method):
    Config = TaskResidualConfig
    needs_frozen_features = True
    class_rows = ("residual",)  # its rows follow the classes into another order
    needs_pixels = False  # so training reads features from the cache and decodes no image

    def on_classes(self, backbone):
        self.register_buffer("text", template_features(backbone, self.class_names, self.template), persistent=False)
        if not hasattr(self, "residual"):
            self.residual = torch.nn.Parameter(torch.zeros_like(self.text))

    def forward(self, backbone, batch):
        text = self.text + self.config.scale * self.residual
        return ClassifierOutput(cosine_logits(backbone, frozen_image_features(backbone, batch), text))

    def loss(self, output, labels, progress):
        return F.cross_entropy(output.logits, labels)

    def param_groups(self):
        return [ParamGroup("residual", [self.residual], self.config.lr)]


METHODS.register("task_residual", TaskResidual)

if __name__ == "__main__":
    folder, data = sys.argv[1], duotune.load_dataset("tiny-food").few_shot(16)
    model = duotune.attach("tiny", "task_residual", data.class_names, data.template)
    arguments = duotune.PromptTrainingArguments(f"{folder}/checkpoints", num_train_epochs=20, augment=False)
    trainer = duotune.PromptTrainer(model, arguments, data)
    trainer.train()
    trainer.save_artifact(folder)
    print(duotune.evaluate(duotune.load(folder), data.test))
