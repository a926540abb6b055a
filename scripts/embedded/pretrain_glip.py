"""Pre-train the embedded GLIP on composed scenes.

    python pretrain_glip.py --glyphs work/glyphs --wordpiece work/wordpiece --out work/glip --minutes 80
    python pretrain_glip.py ... --resume           # goes on from work/glip/state.pt

Three stages. First the text tower alone learns to put names where a sentence encoder puts them (all-MiniLM-L6-v2), so
that names that mean alike start alike. Then the image tower alone looks at grids of drawings: the feature pyramid, read
at the middle of each, says which of all concepts it is. Many drawings a second are seen like that. Then the detector
learns with its own loss, every picture with a caption of what is there among what is not, and two auxiliary ones: it
goes on reading concepts, and the token logits in the middle of each object have to choose its name among those of the
caption. Their weights fade out over the first 80 % and the first 95 %. Drawings keep their own colours in most
pictures at first, the full mixture is reached after 30 %. The offsets of the deformable convolutions are held at zero
for the first --plain part.
--processes train together, each on --batch pictures, and average their gradients; each has one more that composes
scenes ahead. Every scene is shown REUSE times, flipped or not and under a new caption each time.
The image tower runs in bf16 autocast unless that is switched off.
The learning rate is warmed up, then falls as a cosine over the part of --minutes (or --samples) done.
Writes Hugging Face folders (model, tokenizer, processor) and `log.jsonl` to --out.
"""

from __future__ import annotations

import argparse
import collections
import json
import math
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
import torch.multiprocessing as mp
from auxiliary import ConceptReader, PlainConvolutions, Together, choosing_loss, teach_names
from holdout import split
from scene_batches import LONGEST_CAPTION, Watched, compose_ahead, mapped
from scenes import CANVAS, Distribution
from torch import Tensor, nn
from transformers import AutoTokenizer, BertConfig

from duotune.models.glip import GlipConfig, GlipForObjectDetection, GlipProcessor

LAST_LAYERS = 5.0  # factor of the learning rate of the layers that say boxes and centerness


def configuration(args, vocabulary: int) -> GlipConfig:
    return GlipConfig(
        embed_dim=args.embed,
        depths=args.depths,
        num_heads=[max(1, (args.embed << stage) // 32) for stage in range(4)],
        window_size=4,
        drop_path_rate=args.drop_path,
        fpn_channels=args.channels,
        drop_block_prob=0.0,
        num_fusion_layers=args.fusion_layers,
        fusion_dim=args.fusion,
        fusion_heads=2,
        fusion_dropout=0.0,
        group_norm_groups=8,
        num_unused_classes=1,
        max_text_tokens=LONGEST_CAPTION,
        anchor_scale=3.0,
        text_config=BertConfig(
            vocab_size=vocabulary,
            hidden_size=args.text_width,
            num_hidden_layers=args.text_layers,
            num_attention_heads=args.text_width // 32,
            intermediate_size=4 * args.text_width,
            max_position_embeddings=LONGEST_CAPTION,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        ),
    )


def make_processor(config: GlipConfig, tokenizer) -> GlipProcessor:
    return GlipProcessor.from_config(config, tokenizer, short_side=CANVAS, long_side=2 * CANVAS)


def look(model, reader, queue, together: Together, args, log) -> None:
    """Stage two: the image tower and the reader on grids."""
    parameters = [*model.model.vision.parameters(), *reader.parameters()]
    plain = [p for p in parameters if p.ndim < 2]
    groups = [
        dict(params=[p for p in parameters if p.ndim >= 2], weight_decay=0.05),
        dict(params=plain, weight_decay=0),
    ]
    optimiser = torch.optim.AdamW(groups, lr=args.look_lr, betas=(0.9, 0.98), fused=True)
    started, step, seen, recent = time.time(), 0, 0, collections.deque(maxlen=50)
    while True:
        shared = torch.tensor([(time.time() - started) / (60 * args.look_minutes)], dtype=torch.float64)
        together.first([shared])
        if (part := shared.item()) >= 1:
            break
        for group in optimiser.param_groups:
            group["lr"] = args.look_lr * min(1, (step + 1) / 100) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * part)))
        while "input_ids" in (batch := mapped(queue.get(), torch.from_numpy)):
            pass
        labels = [{k: v.to(model.device) for k, v in label.items()} for label in batch["labels"]]
        concepts = [c.to(model.device) for c in batch["concepts"]]
        with torch.autocast(model.device.type, torch.bfloat16, enabled=args.autocast):
            maps = model.model.encode_image(batch["pixels"].to(model.device))[: len(reader.strides)]
        loss, right = reader(maps, labels, concepts)
        optimiser.zero_grad()
        loss.backward()
        together.average(parameters)
        nn.utils.clip_grad_norm_(parameters, 2.0)
        optimiser.step()
        step, seen = step + 1, seen + sum(map(len, concepts)) * together.processes
        recent.append((loss.item(), right.item()))
        if step % args.log_every == 0:
            loss, right = np.mean(recent, 0).tolist()
            log(dict(look=step, drawings=seen, part=round(part, 4), concept=round(loss, 4), right=round(right, 4)))


def optimiser_of(model: nn.Module, reader: nn.Module, lr: float) -> torch.optim.Optimizer:
    """AdamW whose groups carry `factor`: what multiplies the rate of the schedule."""
    kinds = {"plain": [*reader.parameters()], "decayed": [], "last": []}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        plain = parameter.ndim < 2 or "embeddings" in name or "bias_table" in name
        # the last layers start near zero and have to say numbers of several units
        last = name.startswith(("head.bbox_pred", "head.centerness", "head.bias0"))
        kinds["last" if last else "plain" if plain else "decayed"].append(parameter)
    groups = [
        dict(
            params=parameters,
            weight_decay=0.05 if kind == "decayed" else 0.0,
            factor=LAST_LAYERS if kind == "last" else 1.0,
        )
        for kind, parameters in kinds.items()
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), fused=True)


def losses_of(model, reader, batch: dict, part: float, args) -> dict[str, Tensor]:
    """What is minimised, as "loss", and the parts that are logged."""
    device = model.device
    labels = [{k: v.to(device) for k, v in label.items()} for label in batch["labels"]]
    ids, mask = batch["input_ids"].to(device), batch["attention_mask"].to(device)
    text, mask = model.model.encode_text(ids, mask)  # too small to gain from autocast
    with torch.autocast(device.type, torch.bfloat16, enabled=args.autocast):
        maps = model.model.encode_image(batch["pixels"].to(device))
        out = model(feature_maps=maps, text_hidden=text, attention_mask=mask, labels=labels)
    concept, right = reader(maps, labels, [c.to(device) for c in batch["concepts"]])
    choosing, chosen = choosing_loss(out, labels)
    reading, telling = max(0.0, 1 - part / 0.8), max(0.0, 1 - part / 0.95)
    loss = out.loss + args.concept_loss * reading * concept + args.choosing_loss * telling * choosing
    return dict(out.losses, loss=loss, concept=concept, right=right, choosing=choosing, chosen=chosen)


def detect(model, reader, optimiser, queue, progress, together: Together, args, state, watch, log) -> None:
    """Stage three: the whole detector on scenes, until --minutes or --samples are used up.

    Args:
        state: samples and seconds of the run that this one goes on from, changed in place.
        watch: called every --watch-minutes by the first process; returns what belongs in the log.
    """
    convolutions = PlainConvolutions(model)
    if not state["samples"]:
        convolutions.start()
    fresh, first, before = not state["samples"], state["samples"], state["seconds"]
    started = last_watch = time.time()
    step, waited, recent = 0, 0.0, collections.defaultdict(lambda: collections.deque(maxlen=args.log_every))
    while True:
        state["seconds"] = before + time.time() - started
        part = max(
            state["samples"] / args.samples if args.samples else 0,
            state["seconds"] / 60 / args.minutes if args.minutes else 0,
        )
        shared = torch.tensor([part], dtype=torch.float64)
        together.first([shared])
        progress.value = part = shared.item()
        if part >= 1:
            break
        convolutions.on() if part < args.plain else convolutions.off()
        warm = min(1.0, (step + 1) / (150 if fresh else 5))
        for group in optimiser.param_groups:
            group["lr"] = group["factor"] * args.lr * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * part)))
        t = time.time()
        while "input_ids" not in (batch := mapped(queue.get(), torch.from_numpy)):
            pass  # grids that were still waiting
        waited += time.time() - t
        values = losses_of(model, reader, batch, part, args)
        optimiser.zero_grad()
        values.pop("loss").backward()
        together.average([p for group in optimiser.param_groups for p in group["params"]])
        values["norm"] = nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 2.0)
        optimiser.step()
        step, state["samples"] = step + 1, state["samples"] + args.batch * together.processes
        for name, value in values.items():
            recent[name].append(float(value.detach()))
        if step % args.log_every == 0:
            row = dict(step=step, samples=state["samples"], part=round(part, 4))
            row |= {name: round(float(np.mean(values)), 4) for name, values in recent.items()}
            rate = (state["samples"] - first) / (time.time() - started)
            row |= dict(wait_ms=round(1e3 * waited / step, 1), rate=round(rate, 1))
            if not together.rank and time.time() - last_watch > 60 * args.watch_minutes:
                row |= watch()
                last_watch = time.time()
            log(row)
    convolutions.off()


def main(rank: int, args, meeting: str) -> None:
    torch.set_num_threads(args.threads)
    together = Together(rank, args.processes, meeting)
    images = np.load(args.glyphs / "images.npy", mmap_mode="r")
    records = json.loads((args.glyphs / "glyphs.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(args.wordpiece)
    config = configuration(args, len(tokenizer))
    processor = make_processor(config, tokenizer)
    args.out.mkdir(parents=True, exist_ok=True)
    state_file = args.out / "state.pt"
    saved = torch.load(state_file, weights_only=True) if args.resume and state_file.exists() else None
    state = {name: saved[name] if saved else 0 for name in ("samples", "seconds")}
    torch.manual_seed(args.seed + state["samples"])

    context = mp.get_context("fork")
    queue, progress = context.Queue(maxsize=4), context.Value("d", 0.0)
    if args.look_minutes and not saved:
        progress.value = -1.0  # grids first
    seed = [args.seed + state["samples"], rank]
    composer = context.Process(
        target=compose_ahead, daemon=True, args=(queue, progress, images, records, processor, args.batch, seed)
    )
    composer.start()

    model = GlipForObjectDetection(config).to(args.device).train()
    model.head.cls_logits.requires_grad_(False)
    concepts = len(Distribution(images, records, split(records)[0]).concepts)
    reader = ConceptReader(config.fpn_channels, concepts).to(args.device)
    parts = dict(model=model, reader=reader, optimiser=optimiser_of(model, reader, args.lr))
    watched = Watched(images, records, processor)

    def log(row: dict) -> None:
        if rank == 0:
            print(json.dumps(row), flush=True)
            with (args.out / "log.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")

    def watch() -> dict:
        model.save_pretrained(args.out)
        processor.save_pretrained(args.out)
        torch.save(state | {name: part.state_dict() for name, part in parts.items()}, state_file.with_suffix(".new"))
        state_file.with_suffix(".new").replace(state_file)
        return dict(zip(("ap", "ap50"), watched(model)))

    if saved:
        for name, part in parts.items():
            part.load_state_dict(saved[name])
    else:
        settings = {k: str(v) for k, v in vars(args).items() if not isinstance(v, Path)}
        log(dict(parameters=sum(p.numel() for p in model.parameters()), settings=settings))
        if args.name_minutes and rank == 0:
            log(dict(names_cosine=round(teach_names(model, processor, records, args.name_minutes), 3)))
        together.first([p.data for p in [*model.parameters(), *reader.parameters()]])
        if args.look_minutes:
            look(model, reader, queue, together, args, log)
    detect(**parts, queue=queue, progress=progress, together=together, args=args, state=state, watch=watch, log=log)
    composer.terminate()
    if rank == 0:
        log(dict(done=True, samples=state["samples"], minutes=round(state["seconds"] / 60, 1), **watch()))


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--glyphs", type=Path, required=True)
    p.add_argument("--wordpiece", type=Path, required=True)
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--minutes", type=float, default=0, help="end after this long in all (0: no limit)")
    p.add_argument("--samples", type=float, default=0, help="end after so many pictures (0: no limit)")
    p.add_argument("--name-minutes", type=float, default=3, help="how long names are taught first")
    p.add_argument("--look-minutes", type=float, default=20, help="how long the image tower looks at grids then")
    p.add_argument("--look-lr", type=float, default=1.5e-3)
    p.add_argument("--batch", type=int, default=8)
    p.add_argument("--lr", type=float, default=8e-4)
    p.add_argument("--embed", type=int, default=32)
    p.add_argument("--depths", type=int, nargs=4, default=[1, 1, 3, 1])
    p.add_argument("--channels", type=int, default=64)
    p.add_argument("--fusion-layers", type=int, default=2)
    p.add_argument("--fusion", type=int, default=256)
    p.add_argument("--text-width", type=int, default=128)
    p.add_argument("--text-layers", type=int, default=2)
    p.add_argument("--drop-path", type=float, default=0.0)
    p.add_argument("--plain", type=float, default=0.7, help="part of the training without offsets")
    p.add_argument("--concept-loss", type=float, default=0.7)
    p.add_argument("--choosing-loss", type=float, default=1.0)
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--processes", type=int, default=2)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--log-every", type=int, default=50)
    p.add_argument("--watch-minutes", type=float, default=8)
    p.add_argument("--no-autocast", dest="autocast", action="store_false")
    p.add_argument("--resume", action="store_true")
    args = p.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        meeting = f"file://{folder}/meeting"
        if args.processes > 1:
            mp.spawn(main, (args, meeting), args.processes)
        else:
            main(0, args, meeting)
