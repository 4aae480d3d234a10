"""Trains the tiny CLIP of the little world from nothing: tiny_clip.pt, with a log beside it.

    python assets/train_tiny_clip.py            # minutes and final accuracy: see tiny_clip.log

The model is clip_model.CLIP with small sizes. The objective is CLIP's contrastive loss alone:
pictures and captions of a batch are compared with each other, in both directions. One thing differs
from web data: captions here mention only some attributes ("a photo of a striped star."), so a
caption is often true of several pictures of the batch. All captions that are true of a picture
count as positives, with equal shares of the target.

lambda stays at 0.01 from the first step. CLIP learns it and ends there, at its bound; a model this
small would stop at 0.04, and its texts would stand nearly centred where CLIP's lie in a cone.

Colour is learned first and shape late. Half of the batches therefore show a single colour, where
only the other attributes can tell the pictures apart.

Model and log are written when all is done, so that the log is always that of the model beside it.
"""
import hashlib
import math
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))
import clip_model
import data
from assets import world

TEMPLATES = ["a photo of a {}.", "a picture of a {}.", "a drawing of a {}.", "this is a {}.",
             "a {}", "{}"]
# how often a caption names shape, colour, pattern, background, size
MENTION = torch.tensor([.9, .7, .4, .2, .2])
TEXTS = [*(t.format("") for t in TEMPLATES), "shape on", *sum(world.ATTRIBUTES, [])]
# the ids that occur in a caption
WORDS = torch.tensor(sorted({i for text in TEXTS for i in clip_model.prompt_ids(text)}))
MEAN, STD = (torch.tensor(v).view(3, 1, 1) for v in (data.CLIP_MEAN, data.CLIP_STD))
REPORT = 200                                                            # steps between two reports
SETTINGS = SimpleNamespace(
    steps=3000, batch_size=256,
    pictures=50_000,                # of the pre-training set; below 200 a colour may be left out
    lr=1e-3,                        # AdamW's highest rate
    patch=8, width=128,             # a patch's side in pixels; of both towers, 64 for each head
    vision_layers=4, text_layers=3, embed_dim=128, seed=0)


def new_clip(args):
    """A CLIP with CLIP's initialisation, of the sizes in SETTINGS."""
    clip = clip_model.CLIP(
        resolution=world.SIZE, patch_size=args.patch, vision_width=args.width,
        vision_layers=args.vision_layers, text_width=args.width, text_layers=args.text_layers,
        vocab_size=len(WORDS), embed_dim=args.embed_dim)
    width = args.width ** -.5
    spread = {clip.token_embedding.weight: .02, clip.positional_embedding: .01,
              clip.text_projection: width, clip.visual.class_embedding: width,
              clip.visual.positional_embedding: width, clip.visual.proj: width}
    for tower in (clip.transformer, clip.visual.transformer):
        shrink = (2 * len(tower.resblocks)) ** -.5
        for block in tower.resblocks:
            spread |= {block.attn.in_proj_weight: width,
                       block.attn.out_proj.weight: width * shrink,
                       block.mlp.c_fc.weight: (2 * args.width) ** -.5,
                       block.mlp.c_proj.weight: width * shrink}
    for parameter, std in spread.items():
        nn.init.normal_(parameter, std=std)
    clip.logit_scale.data.fill_(math.log(100))          # lambda = 0.01, where CLIP's training ends
    clip.logit_scale.requires_grad_(False)
    return clip


def write_captions(specs, generator):
    """-> token ids (N, 77) counted in WORDS, and the attributes that a caption mentions (N, 5)."""
    mentioned = torch.rand(len(specs), 5, generator=generator) < MENTION
    which = torch.randint(len(TEMPLATES), (len(specs),), generator=generator)
    captions = [TEMPLATES[t].format(world.caption(spec, said)) for t, spec, said in zip(
        which, specs.tolist(), mentioned.tolist(), strict=True)]
    return number_words(clip_model.tokenize(captions)), mentioned


def number_words(tokens):
    """CLIP's ids of 49,408 words -> places in WORDS, where the end token stays the highest."""
    return torch.searchsorted(WORDS, tokens).clamp(max=len(WORDS) - 1)


def contrastive_loss(clip, pictures, tokens, specs, mentioned):
    """Cross-entropy in both directions, over all captions that hold for a picture -> scalar.

    pictures (N, 3, 32, 32), tokens (N, 77), specs (N, 5), mentioned (N, 5) of the captions
    """
    z = F.normalize(clip.encode_image(pictures), dim=-1)
    g = F.normalize(clip.encode_text(tokens), dim=-1)
    logits = z @ g.T / clip.temperature
    agree = specs[:, None] == specs[None]                       # (picture, caption, attribute)
    true = (agree | ~mentioned[None]).all(dim=-1).float()       # the caption holds for the picture
    rows = true / true.sum(dim=1, keepdim=True)
    columns = true.T / true.T.sum(dim=1, keepdim=True)
    return (F.cross_entropy(logits, rows) + F.cross_entropy(logits.T, columns)) / 2


@torch.no_grad()
def zero_shot(clip, specs, pictures):
    """Accuracy in per cent over the 80 colour-shape pairs -> (pairs seen in training, unseen)."""
    names = [f"a photo of a {c} {s}." for s in world.SHAPES for c in world.COLOURS]
    tokens = number_words(clip_model.tokenize(names))
    g = F.normalize(clip.encode_text(tokens), dim=-1)
    z = F.normalize(torch.cat([clip.encode_image(p) for p in pictures.split(500)]), dim=-1)
    true = specs[:, world.SHAPE] * len(world.COLOURS) + specs[:, world.COLOUR]
    right = (z @ g.T).argmax(dim=1) == true
    unseen = torch.tensor([(s, c) in world.UNSEEN for s, c in specs[:, :2].tolist()])
    return 100 * right[~unseen].float().mean().item(), 100 * right[unseen].float().mean().item()


def train(clip, pretraining, test, args, generator, say):
    """AdamW, weight decay on matrices only, with a warm-up of 200 steps and a cosine to 0.

    pretraining     specs (N, 5), pictures (N, 3, 32, 32) in bytes; test: specs, normalised pictures
    say             gets a line about every 200th step. ValueError where the loss is not finite.
    """
    specs, pool = pretraining
    one_colour = [(specs[:, world.COLOUR] == c).nonzero()[:, 0] for c in range(len(world.COLOURS))]
    places = one_colour + [torch.arange(len(specs))] * len(one_colour)      # half and half
    groups = [{"params": [p for p in clip.parameters() if p.ndim > 1], "weight_decay": .05},
              {"params": [p for p in clip.parameters() if p.ndim <= 1], "weight_decay": 0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(.9, .98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (
        min(1, step / 200) * .5 * (1 + math.cos(math.pi * step / args.steps))))
    start, since = time.time(), []                          # losses since the last report
    for step in range(1, args.steps + 1):
        among = places[torch.randint(len(places), (1,), generator=generator).item()]
        chosen = among[torch.randint(len(among), (args.batch_size,), generator=generator)]
        tokens, mentioned = write_captions(specs[chosen], generator)
        pictures = (pool[chosen] / 255 - MEAN) / STD
        loss = contrastive_loss(clip, pictures, tokens, specs[chosen], mentioned)
        if not loss.isfinite():
            raise ValueError(f"the loss became {loss.item()} at step {step}: try a smaller lr")
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(clip.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        since.append(loss.item())
        if step % REPORT == 0 or step == args.steps:
            seen, unseen = zero_shot(clip, *test)
            say(f"step {step:5d}  {(time.time() - start) / 60:5.1f} min  "
                f"loss {sum(since) / len(since):.4f}  "
                f"zero-shot, 80 pairs: seen {seen:.1f} %, unseen {unseen:.1f} %")
            since = []


def run(out):
    """The whole job: the model and its log beside it; what can't be saved is refused first."""
    log, args, lines = out.with_suffix(".log"), SETTINGS, []
    data.check_output("--out", out, [".pt"])
    data.check_output("log", log)

    def say(line):
        print(line, flush=True)
        lines.append(line + "\n")

    say(f"torch {torch.__version__}, {torch.get_num_threads()} threads, " + " ".join(
        f"--{name.replace('_', '-')} {value}" for name, value in vars(args).items()))
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    start = time.time()
    specs = world.random_specs(args.pictures, generator)
    pool = torch.cat([(255 * world.draw_pictures(s, generator)).byte() for s in specs.split(1000)])
    tests = world.any_specs(2000, generator)
    test = tests, (world.draw_pictures(tests, generator) - MEAN) / STD
    say(f"{args.pictures} pictures drawn in {time.time() - start:.0f} s")
    clip = new_clip(args)
    numbers = sum(p.numel() for n, p in clip.named_parameters() if "token" not in n)
    say(f"{numbers:,} parameters without the word vectors")
    train(clip, (specs, pool), test, args, generator, say)
    state = {n: t.detach().half() for n, t in clip.state_dict().items()}
    for name, value in state.items():
        if not value.isfinite().all():
            raise ValueError(f"{name} is no longer finite: try a smaller lr")
    state["token_embedding.words"] = WORDS          # whose vectors these are; other words read as 0
    model = clip_model.as_bytes(state)
    say(f"{out.name}: {len(model):,} bytes, {len(WORDS)} words, "
        f"SHA-256 {hashlib.sha256(model).hexdigest()}")
    data.write(out, model)
    data.write(log, "".join(lines))


def main(argv=None):
    p = data.Parser(description=__doc__.splitlines()[0])
    p.add_argument("--out", type=Path, default=Path(__file__).with_name("tiny_clip.pt"),
                   help="the model, a .pt file; its log stands beside it (%(default)s)")
    return data.run_script(lambda: run(p.parse_args(argv).out), "interrupted; no model was saved, "
                           "an older one and its log stay as they were")


if __name__ == "__main__":
    sys.exit(main())
