"""The same training steps without any of duotune's shortcuts, arranged as the authors' code arranges them.

Texts are padded to the text tower's full length for every class; the frozen image tower runs in
every step; prompt tokens pass through every layer as queries, too; all rows of the last layer are
computed; DPT sorts all zero-shot logits and classifies every attended candidate. The layers are the
Hugging Face modules as they are. Nothing of duotune is imported.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .shapes import Shape, WordTokenizer, batch, build_model, class_names, initial_parameters
from .steps import TrainingStep


class PlainStep(TrainingStep):
    """One training step of "coop" or "dpt": call it; gradients stay on `parameters`."""

    def __init__(self, shape: Shape, method: str, num_classes: int, dtype: torch.dtype):
        self.shape, self.method, self.num_classes = shape, method, num_classes
        self.model = build_model(shape, dtype)
        self.dtype = dtype
        names = class_names(num_classes)
        context = " ".join(["x"] * shape.context_tokens)
        self.ids = self.tokenize([f"{context} {name}." for name in names])
        length = shape.text_length
        self.mask = torch.full((length, length), float("-inf"), dtype=dtype).triu(1)[None, None]
        self.pixels, self.labels = batch(shape, num_classes)
        values = initial_parameters(shape, method, num_classes)
        self.parameters = {k: v.clone().requires_grad_() for k, v in values.items()}
        self.optimiser = torch.optim.SGD(self.parameters.values(), lr=0.002, momentum=0.9, weight_decay=5e-4)
        with torch.no_grad():
            self.embedded = self.model.text_model.embeddings.token_embedding(self.ids)
            if method == "dpt":
                ids = self.tokenize([f"a photo of a {name}." for name in names])
                rows = [self.encode_text(self.model.text_model.embeddings.token_embedding(i), i) for i in ids.split(32)]
                self.template_text = F.normalize(torch.cat(rows).float(), dim=-1)

    def tokenize(self, texts: list[str]) -> Tensor:
        tokenizer = WordTokenizer(self.shape.vocabulary)
        ids = torch.zeros(len(texts), self.shape.text_length, dtype=torch.long)
        for i, text in enumerate(texts):
            row = tokenizer.encode(text)
            ids[i, : len(row)] = torch.tensor(row)
        return ids

    def encode_text(self, embedded: Tensor, ids: Tensor) -> Tensor:
        tower = self.model.text_model
        x = embedded + tower.embeddings.position_embedding.weight
        for layer in tower.encoder.layers:
            x = layer(x, self.mask)
        x = tower.final_layer_norm(x)
        return self.model.text_projection(x[torch.arange(len(x)), ids.argmax(-1)])

    def text(self) -> Tensor:
        n = self.shape.context_tokens
        context = self.parameters["text.context.tokens"].to(self.dtype).expand(self.num_classes, -1, -1)
        prompts = torch.cat([self.embedded[:, :1], context, self.embedded[:, 1 + n :]], dim=1)
        return self.encode_text(prompts, self.ids).float()

    def image(self, candidates: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Image features, and auxiliary logits of every candidate (B, Q, C); frozen tower if `candidates` is None."""
        tower, p, auxiliary = self.model.vision_model, self.parameters, None
        x = tower.pre_layrnorm(tower.embeddings(self.pixels.to(self.dtype)))
        rows = x.shape[1]
        for i, layer in enumerate(tower.encoder.layers):
            if candidates is not None and i < self.shape.vision_layers - 1:
                x = torch.cat([x, p["visual.prompts.tokens"][i].to(x.dtype).expand(len(x), -1, -1)], dim=1)
            elif candidates is not None:
                tokens, auxiliary = self.class_aware(x.detach().float(), candidates)
                x = torch.cat([x, tokens.to(x.dtype)], dim=1)
            x = layer(x, None)[:, :rows]
        return self.model.visual_projection(tower.post_layernorm(x[:, 0])).float(), auxiliary

    def class_aware(self, hidden: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
        part = {k.removeprefix("class_aware.0."): v for k, v in self.parameters.items()}
        width = (hidden.shape[-1],)
        queries = F.linear(candidates, part["meta.weight"], part["meta.bias"])
        keys = torch.cat([hidden, part["extra_tokens"].expand(len(hidden), -1, -1)], dim=1)
        scores = F.linear(queries, part["attention.query.weight"]) @ F.linear(keys, part["attention.key.weight"]).mT
        attended = F.linear((scores / 32**0.5).softmax(-1) @ keys, part["attention.value.weight"])
        normed = F.layer_norm(attended, width, part["aux.0.norm.weight"], part["aux.0.norm.bias"])
        logits = F.linear(normed, part["aux.0.classifier.weight"])
        return F.layer_norm(attended + queries, width, part["norm.weight"], part["norm.bias"]), logits

    def loss(self) -> Tensor:
        scale = self.model.logit_scale.float().exp()
        with torch.no_grad():
            frozen = F.normalize(self.image()[0], dim=-1)
        if self.method == "coop":
            return F.cross_entropy(scale * frozen @ F.normalize(self.text(), dim=-1).T, self.labels)
        count = min(self.shape.candidates, self.num_classes)
        candidates = torch.sort(scale * frozen @ self.template_text.T, descending=True)[1][:, :count]
        text = self.text()
        image, auxiliary = self.image(text[candidates])
        image, unit_text, labels = F.normalize(image, dim=-1), F.normalize(text, dim=-1), self.labels
        loss = F.cross_entropy(scale * frozen @ unit_text.T, labels)
        loss = loss + F.cross_entropy(scale * image @ self.template_text.T, labels)
        loss = loss + 0.1 * F.cross_entropy(scale * image @ unit_text.T, labels)
        hit = candidates == labels[:, None]
        if hit.any():
            loss = loss + 0.3 * F.cross_entropy(auxiliary[hit], labels[:, None].expand_as(hit)[hit])
        return loss


def plain_peak_bytes(shape: Shape, method: str, num_classes: int, dtype: torch.dtype) -> float:
    """Estimate of a plain step's peak memory, to leave out what would not fit.

    Per layer and row autograd keeps x twice, q, k, v, the attended rows, and four tensors of MLP width 4d
    (before the activation, twice around its product, the sigmoid): 6 d + 14 d at the least. 2 GB for the rest.
    """
    size = torch.finfo(dtype).bits // 8
    rows = num_classes * shape.text_length * shape.text_layers * shape.text_width
    if method == "dpt":
        prompted = shape.image_tokens + shape.visual_tokens
        rows += shape.batch * prompted * shape.vision_layers * shape.vision_width
    return 16 * size * rows + 2e9
