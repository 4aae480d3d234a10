"""Trains the tiny CLIP of the little world from nothing and writes tiny_clip.pt, with a log beside it.

    python assets/train_tiny_clip.py            # minutes and final accuracy: see tiny_clip.log

The model is clip_model.CLIP with small sizes. The objective is CLIP's contrastive loss alone: pictures and captions of a
batch are compared with each other, in both directions. One thing differs from web data: captions here mention only some
attributes ("a photo of a striped star."), so a caption is often true of several pictures of the batch. All captions that
are true of a picture count as positives, with equal shares of the target.

Colour is learned first and shape late. Half of the batches therefore show a single colour, where only the other
attributes can tell the pictures apart.
"""
import argparse
import math
import os
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))
import clip_model  # noqa: E402
from assets import world  # noqa: E402

TEMPLATES = ["a photo of a {}.", "a picture of a {}.", "a drawing of a {}.", "this is a {}.", "a {}", "{}"]
MENTION = torch.tensor([.9, .7, .4, .2, .2])         # how often a caption names shape, colour, pattern, background, size
WORDS = torch.tensor(sorted({i for text in [*(t.format("") for t in TEMPLATES), "shape on",
                                            *(word for values in world.ATTRIBUTES for word in values)]
                             for i in clip_model.prompt_ids(text)}))    # the ids that occur in a caption
MEAN, STD = (torch.tensor(v).view(3, 1, 1) for v in ((0.48145466, 0.4578275, 0.40821073),
                                                     (0.26862954, 0.26130258, 0.27577711)))        # CLIP's


def new_clip(args):
    """A CLIP with CLIP's initialisation."""
    clip = clip_model.CLIP(resolution=world.SIZE, patch_size=args.patch, vision_width=args.width,
                           vision_layers=args.vision_layers, text_width=args.width, text_layers=args.text_layers,
                           vocab_size=len(WORDS), embed_dim=args.embed_dim)
    normal = nn.init.normal_
    normal(clip.token_embedding.weight, std=.02)
    normal(clip.positional_embedding, std=.01)
    normal(clip.text_projection, std=args.width ** -.5)
    for parameter in (clip.visual.class_embedding, clip.visual.positional_embedding, clip.visual.proj):
        normal(parameter, std=args.width ** -.5)
    for tower in (clip.transformer, clip.visual.transformer):
        shrink = (2 * len(tower.resblocks)) ** -.5
        for block in tower.resblocks:
            normal(block.attn.in_proj_weight, std=args.width ** -.5)
            normal(block.attn.out_proj.weight, std=args.width ** -.5 * shrink)
            normal(block.mlp.c_fc.weight, std=(2 * args.width) ** -.5)
            normal(block.mlp.c_proj.weight, std=args.width ** -.5 * shrink)
    clip.logit_scale.data.fill_(math.log(1 / .07))
    return clip


def write_captions(specs, generator):
    """-> token ids (N, 77) counted in WORDS, and which attributes each caption mentions (N, 5)."""
    mentioned = torch.rand(len(specs), 5, generator=generator) < MENTION
    which = torch.randint(len(TEMPLATES), (len(specs),), generator=generator)
    captions = [TEMPLATES[t].format(world.caption(s, m)) for t, s, m in zip(which, specs.tolist(), mentioned.tolist())]
    return number_words(clip_model.tokenize(captions)), mentioned


def number_words(tokens):
    """CLIP's ids -> places in WORDS (the end token stays the highest); training needs no vector for 49,408 words."""
    return torch.searchsorted(WORDS, tokens).clamp(max=len(WORDS) - 1)


def contrastive_loss(clip, pictures, tokens, specs, mentioned):
    with torch.autocast(pictures.device.type, torch.bfloat16):
        z, g = clip.encode_image(pictures), clip.encode_text(tokens)
    z, g = F.normalize(z.float(), dim=-1), F.normalize(g.float(), dim=-1)
    logits = z @ g.T / clip.temperature
    agree = specs[:, None] == specs[None]                               # (picture, caption, attribute)
    true = (agree | ~mentioned[None]).all(dim=-1).float()               # the caption holds for the picture
    rows, columns = true / true.sum(dim=1, keepdim=True), true.T / true.T.sum(dim=1, keepdim=True)
    return (F.cross_entropy(logits, rows) + F.cross_entropy(logits.T, columns)) / 2


@torch.no_grad()
def zero_shot(clip, specs, pictures):
    """Accuracy in per cent on the 80 colour-shape pairs, over pictures of pairs seen in training and of unseen ones."""
    names = [f"a photo of a {c} {s}." for s in world.SHAPES for c in world.COLOURS]
    g = F.normalize(clip.encode_text(number_words(clip_model.tokenize(names))), dim=-1)
    z = F.normalize(torch.cat([clip.encode_image(p) for p in pictures.split(500)]), dim=-1)
    right = (z @ g.T).argmax(dim=1) == specs[:, world.SHAPE] * len(world.COLOURS) + specs[:, world.COLOUR]
    unseen = torch.tensor([(s, c) in world.UNSEEN for s, c in specs[:, :2].tolist()])
    return 100 * right[~unseen].float().mean().item(), 100 * right[unseen].float().mean().item()


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--steps", type=int, default=3000)
    p.add_argument("--batch-size", type=int, default=256)
    p.add_argument("--pictures", type=int, default=50_000, help="size of the pre-training set")
    p.add_argument("--lr", type=float, default=1e-3)
    p.add_argument("--patch", type=int, default=8)
    p.add_argument("--width", type=int, default=128)
    p.add_argument("--vision-layers", type=int, default=4)
    p.add_argument("--text-layers", type=int, default=3)
    p.add_argument("--embed-dim", type=int, default=128)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--out", type=Path, default=Path(__file__).with_name("tiny_clip.pt"))
    args = p.parse_args()
    log = open(args.out.with_suffix(".log"), "w")

    def say(line):
        print(line, flush=True)
        print(line, file=log, flush=True)

    say(f"torch {torch.__version__}, {torch.get_num_threads()} threads, "
        + " ".join(f"--{k.replace('_', '-')} {v}" for k, v in vars(args).items() if k != "out"))
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    start = time.time()
    specs = world.random_specs(args.pictures, generator)
    pool = torch.cat([(255 * world.draw_pictures(s, generator)).byte() for s in specs.split(1000)])
    by_colour = [(specs[:, world.COLOUR] == c).nonzero()[:, 0] for c in range(len(world.COLOURS))]
    test_specs = torch.stack([torch.randint(len(a), (2000,), generator=generator) for a in world.ATTRIBUTES], dim=1)
    test = (world.draw_pictures(test_specs, generator) - MEAN) / STD
    say(f"{len(pool)} pictures drawn in {time.time() - start:.0f} s")

    clip = new_clip(args)
    say(f"{sum(p.numel() for n, p in clip.named_parameters() if 'token' not in n):,} parameters without the word vectors")
    decay = [p for p in clip.parameters() if p.ndim > 1]
    others = [p for p in clip.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW([{"params": decay, "weight_decay": .05}, {"params": others, "weight_decay": 0}],
                                  lr=args.lr, betas=(.9, .98))
    rate = lambda step: min(1, step / 200) * .5 * (1 + math.cos(math.pi * step / args.steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    total = 0.0
    for step in range(1, args.steps + 1):
        colour = torch.randint(2 * len(by_colour), (1,), generator=generator).item()
        among = by_colour[colour] if colour < len(by_colour) else torch.arange(len(pool))
        chosen = among[torch.randint(len(among), (args.batch_size,), generator=generator)]
        tokens, mentioned = write_captions(specs[chosen], generator)
        loss = contrastive_loss(clip, (pool[chosen] / 255 - MEAN) / STD, tokens, specs[chosen], mentioned)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(clip.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        clip.logit_scale.data.clamp_(max=math.log(100))                 # as CLIP does
        total += loss.item()
        if step % 200 == 0 or step == args.steps:
            seen, unseen = zero_shot(clip, test_specs, test)
            say(f"step {step:5d}  {(time.time() - start) / 60:5.1f} min  loss {total / 200:.4f}  "
                f"1/lambda {1 / clip.temperature.item():5.1f}  zero-shot, 80 pairs: seen {seen:.1f} %, unseen {unseen:.1f} %")
            total = 0.0

    state = {n: t.detach().half() for n, t in clip.state_dict().items()}
    state["token_embedding.words"] = WORDS          # the ids that the vectors belong to; other words read as 0
    part = args.out.with_suffix(".part")
    torch.save(state, part)
    os.replace(part, args.out)
    say(f"{args.out.name}: {args.out.stat().st_size:,} bytes, {len(WORDS)} words, SHA-256 {clip_model.sha256(args.out)}")


if __name__ == "__main__":
    main()
