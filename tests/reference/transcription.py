"""The papers' equations, written down anew on the untouched Hugging Face `CLIPModel`.

Texts are padded to the text tower's full length and read by the model's own `get_text_features`;
prompts enter the image tower by hooks around its layers. Sources: the papers named in the methods'
docstrings, and for what they leave open the behaviour of the authors' public DPT code. Parameters
come in as dicts under duotune's names; nothing else of duotune is used.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor


def towers(model):
    text, vision = model.text_model, model.vision_model
    return getattr(text, "text_model", text), getattr(vision, "vision_model", vision)


def pooled(output) -> Tensor:
    return output if isinstance(output, Tensor) else output.pooler_output


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


class Transcription:
    """One CLIPModel and its tokenizer; `pad` is the id that fills texts up to the full length."""

    def __init__(self, model, tokenizer, pad: int):
        self.model, self.tokenizer, self.pad = model, tokenizer, pad
        self.text_tower, self.vision_tower = towers(model)
        self.length = model.config.text_config.max_position_embeddings
        self.scale = model.logit_scale.exp()

    def ids(self, texts: list[str]) -> Tensor:
        out = torch.full((len(texts), self.length), self.pad)
        for i, text in enumerate(texts):
            row = self.tokenizer(text).input_ids
            out[i, : len(row)] = torch.tensor(row)
        return out

    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        return -logits.log_softmax(-1)[torch.arange(len(labels)), labels].mean()

    # --- text side ---

    def plain_text(self, texts: list[str]) -> Tensor:
        with torch.no_grad():
            return pooled(self.model.get_text_features(input_ids=self.ids(texts)))

    def zero_shot_text(self, names: list[str], templates: list[str]) -> Tensor:
        return unit(sum(unit(self.plain_text([t.format(n) for n in names])) for t in templates))

    def coop_text(self, names: list[str], context: Tensor, position: str) -> Tensor:
        """context (M, d) or (C, M, d); the text is tokenised with M stand-ins, whose embeddings are then replaced."""
        m = context.shape[-2]
        ids = self.ids([" ".join(["x"] * m) + f" {name}." for name in names])
        embedded = self.text_tower.embeddings.token_embedding(ids).detach()
        before = {"end": m, "middle": m // 2, "front": 0}[position]
        prompts, rows = [], []
        for c, name in enumerate(names):
            mine = context if context.ndim == 2 else context[c]
            start, rest, n = embedded[c, :1], embedded[c, 1 + m :], len(self.tokenizer(name).input_ids) - 2
            prompts.append(torch.cat([start, mine[:before], rest[:n], mine[before:], rest[n:]]))
            # the end token's place is the same wherever the name stands
            rows.append(ids[c])
        replace = lambda module, inputs, output: torch.stack(prompts)
        handle = self.text_tower.embeddings.token_embedding.register_forward_hook(replace)
        try:
            return pooled(self.model.get_text_features(input_ids=torch.stack(rows)))
        finally:
            handle.remove()

    # --- image side ---

    def plain_image(self, pixels: Tensor) -> Tensor:
        with torch.no_grad():
            return pooled(self.model.get_image_features(pixel_values=pixels))

    @contextmanager
    def prompted_layers(self, tokens_of, remove: bool):
        """tokens_of(layer, hidden) are appended to a layer's input and, if `remove`, cut off its output."""
        with ExitStack() as stack:
            for i, layer in enumerate(self.vision_tower.encoder.layers):
                rows = {}

                def before(module, inputs, i=i, rows=rows):
                    rows["count"] = inputs[0].shape[1]
                    tokens = tokens_of(i, inputs[0])
                    if tokens is not None:
                        tokens = tokens.expand(len(inputs[0]), -1, -1)
                        return (torch.cat([inputs[0], tokens], dim=1), *inputs[1:])

                def after(module, inputs, output, rows=rows):
                    if isinstance(output, tuple):
                        return (output[0][:, : rows["count"]], *output[1:])
                    return output[:, : rows["count"]]

                stack.callback(layer.register_forward_pre_hook(before).remove)
                if remove:
                    stack.callback(layer.register_forward_hook(after).remove)
            yield

    def vpt_image(self, pixels: Tensor, tokens: Tensor, deep: bool) -> Tensor:
        """tokens (layers, P, d), or (1, P, d) if shallow."""
        tokens_of = lambda i, hidden: tokens[i] if i < len(tokens) else None
        with self.prompted_layers(tokens_of, remove=deep):
            return pooled(self.model.get_image_features(pixel_values=pixels))

    def class_aware(self, p: dict[str, Tensor], hidden: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
        """Prompt tokens and attended candidates o of one layer, image by image and candidate by candidate."""
        tokens, attended = [], []
        for x, texts in zip(hidden.detach(), candidates):
            keys = torch.cat([x, p["extra_tokens"]])
            for text in texts:
                query = p["meta.weight"] @ text + p["meta.bias"]
                scores = (keys @ p["attention.key.weight"].T) @ (p["attention.query.weight"] @ query) / 32**0.5
                o = p["attention.value.weight"] @ (scores.softmax(0) @ keys)
                attended.append(o)
                tokens.append(self.norm(o + query, p["norm.weight"], p["norm.bias"]))
        shape = (*candidates.shape[:2], -1)
        return torch.stack(tokens).view(shape), torch.stack(attended).view(shape)

    @staticmethod
    def norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight + bias

    # --- methods: (logits, loss) ---

    def coop(self, p, names, pixels, labels, position="end"):
        text = self.coop_text(names, p["text.context.tokens"], position)
        logits = self.scale * unit(self.plain_image(pixels)) @ unit(text).T
        return logits, self.cross_entropy(logits, labels)

    def vpt(self, p, names, pixels, labels, template, deep=True):
        image = self.vpt_image(pixels, p["visual.prompts.tokens"], deep)
        logits = self.scale * unit(image) @ self.zero_shot_text(names, [template]).T
        return logits, self.cross_entropy(logits, labels)

    def vlp(self, p, names, pixels, labels, deep=True, position="end"):
        text = self.coop_text(names, p["text.context.tokens"], position)
        image = self.vpt_image(pixels, p["visual.prompts.tokens"], deep)
        logits = self.scale * unit(image) @ unit(text).T
        return logits, self.cross_entropy(logits, labels)

    def linear_probe(self, p, pixels, labels):
        logits = self.scale * unit(self.plain_image(pixels)) @ p["head.weight"].T + p["head.bias"]
        return logits, self.cross_entropy(logits, labels)

    def candidates(self, names, pixels, template, count):
        scores = unit(self.plain_image(pixels)) @ self.zero_shot_text(names, [template]).T
        return scores.sort(descending=True)[1][:, :count]

    def dpt(self, p, names, pixels, labels, template, first, count, guided, alpha=0.3, weight=0.1):
        """first: first class-aware layer counted from 1."""
        text = self.coop_text(names, p["text.context.tokens"], "end")
        chosen = self.candidates(names, pixels, template, min(count, len(names)))
        attended = []

        def tokens_of(i, hidden):
            if i < first - 1:
                return p["visual.prompts.tokens"][i]
            part = f"class_aware.{i - first + 1}."
            mine = {k.removeprefix(part): v for k, v in p.items() if k.startswith(part)}
            tokens, o = self.class_aware(mine, hidden, text[chosen])
            attended.append(o)
            return tokens

        with self.prompted_layers(tokens_of, remove=True):
            image = pooled(self.model.get_image_features(pixel_values=pixels))
        logits = self.scale * unit(image) @ unit(text).T
        loss = self.cross_entropy(logits, labels)
        if guided:
            text_side = self.scale * unit(self.plain_image(pixels)) @ unit(text).T
            image_side = self.scale * unit(image) @ self.zero_shot_text(names, [template]).T
            loss = self.cross_entropy(text_side, labels) + self.cross_entropy(image_side, labels) + weight * loss
        terms = []
        for layer, o in enumerate(attended):
            normed = self.norm(o, p[f"aux.{layer}.norm.weight"], p[f"aux.{layer}.norm.bias"])
            auxiliary = normed @ p[f"aux.{layer}.classifier.weight"].T
            for b, q in (chosen == labels[:, None]).nonzero().tolist():
                terms.append(self.cross_entropy(auxiliary[b, q][None], labels[b][None]))
        if terms:
            loss = loss + alpha * torch.stack(terms).mean()
        return logits, loss
