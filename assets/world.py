"""The little world: coloured shapes, drawn from seeds, with captions in plain English.

    python assets/world.py                  # draws world.png: a picture of every class, to look at

One world serves two ends. assets/train_tiny_clip.py draws endless captioned pictures from it and
trains the tiny CLIP on them. The datasets below are its downstream tasks: other pictures, in styles
that the pre-training never showed. Some colour-shape pairs (UNSEEN) never occur in pre-training,
neither in a picture nor in a caption; the novel classes of the main dataset are made of them, so
they are novel to the tiny CLIP itself.
"""
import argparse
import sys
import zlib
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw

SIZE = 32                                                   # pixels
SHAPES = ["circle", "square", "triangle", "star", "cross", "ring", "heart", "moon", "bolt", "leaf"]
COLOURS = {"red": (.85, .15, .15), "yellow": (.95, .85, .2), "green": (.2, .65, .25),
           "cyan": (.3, .85, .9), "blue": (.15, .3, .85), "purple": (.5, .2, .65),
           "pink": (.95, .55, .75), "brown": (.5, .3, .15)}
PATTERNS = ["plain", "striped", "dotted", "checkered"]
BACKGROUNDS = {"black": .07, "grey": .5, "white": .93}
SIZES = ["small", "large"]
# the columns of a spec, in this order
ATTRIBUTES = [SHAPES, list(COLOURS), PATTERNS, list(BACKGROUNDS), SIZES]
SHAPE, COLOUR, PATTERN, BACKGROUND, SIZE_OF = range(5)

# A quarter of the 80 pairs: each shape lacks two colours, each colour two or three shapes.
PAIRS = [(s, c) for s in range(len(SHAPES)) for c in range(len(COLOURS))]
UNSEEN = {(s, c) for s, c in PAIRS if (3 * s + c) % 4 == 0}


# ------------------------------------------------------------------------------------------ drawing

def _polygon(p, corners):
    """Signed distance, positive inside, of points p (..., 2) from a polygon of (x, y) corners."""
    corners = torch.tensor(corners)
    distance = torch.full(p.shape[:-1], 9.0)
    inside = torch.zeros(p.shape[:-1], dtype=torch.bool)
    for a, b in zip(corners, corners.roll(-1, 0), strict=True):
        along = (((p - a) @ (b - a)) / ((b - a) @ (b - a))).clamp(0, 1)
        distance = torch.minimum(distance, (p - a - along[..., None] * (b - a)).norm(dim=-1))
        crosses = (a[1] > p[..., 1]) != (b[1] > p[..., 1])
        edge = (b[0] - a[0]) * (p[..., 1] - a[1]) / (b[1] - a[1] + 1e-9) + a[0]
        inside ^= crosses & (p[..., 0] < edge)
    return torch.where(inside, distance, -distance)


def _turns(radii, start=torch.pi / 2):
    angles = start + 2 * torch.pi * torch.arange(len(radii)) / len(radii)
    return [(float(r * torch.cos(a)), float(r * torch.sin(a)))
            for r, a in zip(radii, angles, strict=True)]


def _disc(p, x, y, r):
    return r - (p - torch.tensor([x, y])).norm(dim=-1)


POLYGONS = {
    "square": _turns([1.0] * 4, torch.pi / 4),
    "triangle": _turns([1.05] * 3),
    "star": _turns([1.05, .42] * 5),
    "cross": [(-.27, -.95), (.27, -.95), (.27, -.27), (.95, -.27), (.95, .27), (.27, .27),
              (.27, .95), (-.27, .95), (-.27, .27), (-.95, .27), (-.95, -.27), (-.27, -.27)],
    "bolt": [(.25, 1.0), (-.6, -.1), (-.05, -.1), (-.3, -1.0), (.6, .15), (.05, .15)],
    "heart": [(-.8, .1), (-.42, .33), (0, .5), (.42, .33), (.8, .1), (0, -.9)],     # less its lobes
}


def _inside(shape, p):
    """How far inside the shape the points p (..., 2) lie; it fills about the unit disc, y up."""
    if shape == "circle":
        return _disc(p, 0, 0, .85)
    if shape == "ring":
        return .2 - (p.norm(dim=-1) - .72).abs()
    if shape == "moon":
        return torch.minimum(_disc(p, 0, 0, .95), -_disc(p, .45, .15, .75))
    if shape == "leaf":
        return torch.minimum(_disc(p, .68, 0, 1.15), _disc(p, -.68, 0, 1.15))
    if shape == "heart":
        lobes = torch.maximum(_disc(p, .42, .33, .48), _disc(p, -.42, .33, .48))
        return torch.maximum(lobes, _polygon(p, POLYGONS[shape]))
    return _polygon(p, POLYGONS[shape])


def _patterns(p, radius, chosen, phase):
    """How much of the second colour each point shows, in [0, 1]: (N, 32, 32).

    p (N, 32, 32, 2) points of the unit disc, radius (N, 1, 1, 1) in pixels, chosen (N,) patterns.
    """
    wave = torch.sin(p * radius * (2 * torch.pi / 6.5) + phase)         # a period of 6.5 pixels
    striped = wave[..., 1] * 2
    dotted = (wave.sum(dim=-1) - .6) * 1.5
    checkered = wave.prod(dim=-1) * 4
    each = torch.stack([torch.zeros_like(striped), striped, dotted, checkered])
    blend = (each[chosen, torch.arange(len(p))] + .5).clamp(0, 1)
    return torch.where(chosen[:, None, None] == 0, 0.0, blend)


def draw_pictures(specs, generator, sketch=False, max_turn=20):
    """specs (N, 5) attribute indices -> pictures (N, 3, 32, 32) in [0, 1].

    Pose, shade and light come from `generator`. sketch draws the outline only; max_turn is the
    largest rotation in degrees.
    """
    n = len(specs)

    def uniform(low, high, *shape):
        return low + (high - low) * torch.rand(n, *shape, generator=generator)

    axis = torch.arange(SIZE) + .5 - SIZE / 2
    x, y = axis.expand(SIZE, SIZE), -axis[:, None].expand(SIZE, SIZE)
    pixels = torch.stack([x, y], dim=-1)                                # (32, 32, 2), y points up
    small, large = uniform(6.5, 8.5), uniform(10.5, 13)
    radius = torch.where(specs[:, SIZE_OF] == 0, small, large)[:, None, None, None]
    turn = uniform(-max_turn, max_turn) * torch.pi / 180
    rotation = torch.stack([turn.cos(), -turn.sin(), turn.sin(), turn.cos()], dim=-1)
    shift = uniform(-1, 1, 1, 1, 2) * (SIZE / 2 - 1.0 - radius).clamp(min=1)
    p = ((pixels - shift) @ rotation.view(n, 1, 2, 2)) / radius         # (N, 32, 32, 2)
    depth = torch.empty(n, SIZE, SIZE)
    for s, shape in enumerate(SHAPES):
        depth[specs[:, SHAPE] == s] = _inside(shape, p[specs[:, SHAPE] == s])
    depth = depth * radius[..., 0]                                      # in pixels
    cover = (depth + .5).clamp(0, 1)
    if sketch:
        cover = cover * (1.8 - depth).clamp(0, 1)
    blend = _patterns(p, radius, specs[:, PATTERN], uniform(0, 2 * torch.pi, 1, 1, 2))[:, None]

    colour = torch.tensor(list(COLOURS.values()))[specs[:, COLOUR]] + uniform(-.07, .07, 3)
    bright = colour.mean(dim=1, keepdim=True) > .5
    second = torch.where(bright, colour * .4, .45 * colour + .55)       # the pattern's colour
    figure = colour[..., None, None] * (1 - blend) + second[..., None, None] * blend
    grey = torch.tensor(list(BACKGROUNDS.values()))[specs[:, BACKGROUND]]
    ground = grey[:, None, None, None] + uniform(-.06, .06, 3, 1, 1)
    slope = (pixels @ uniform(-1, 1, 2, 1)[:, None]).squeeze(-1)[:, None] / SIZE    # light's side
    picture = ground + (figure - ground) * cover[:, None]
    noise = .02 * torch.randn(n, 3, SIZE, SIZE, generator=generator)
    return (picture + .12 * slope + noise).clamp(0, 1)


# ----------------------------------------------------------------------------------------- captions

def caption(spec, mentioned):
    """spec (5,) and what to mention (5,) -> "small red striped star on black" and the like."""
    shape, colour, pattern, background, size = (
        values[i] * bool(said) for values, i, said in zip(ATTRIBUTES, spec, mentioned, strict=True))
    words = [size, colour, pattern, shape or "shape", background and f"on {background}"]
    return " ".join(filter(None, words))


def any_specs(n, generator):
    """n specs (n, 5), every attribute uniform."""
    columns = [torch.randint(len(a), (n,), generator=generator) for a in ATTRIBUTES]
    return torch.stack(columns, dim=1)


def random_specs(n, generator):
    """n specs, uniform over the world but for the UNSEEN pairs."""
    specs = any_specs(4 * n, generator)
    unseen = torch.zeros(len(SHAPES), len(COLOURS), dtype=torch.bool)
    unseen[tuple(torch.tensor(sorted(UNSEEN)).T)] = True
    return specs[~unseen[specs[:, SHAPE], specs[:, COLOUR]]][:n]


# ----------------------------------------------------------------------------------------- datasets

def _classes(label_space):
    """-> class names and, for each, the attributes that it fixes."""
    if label_space == "pairs":
        pairs = []
        for some in ([p for p in PAIRS if p not in UNSEEN], sorted(UNSEEN)):    # base, then novel
            pairs += [some[i * len(some) // 12] for i in range(12)]     # over all shapes, colours
        return ([f"{list(COLOURS)[c]} {SHAPES[s]}" for s, c in pairs],
                [{SHAPE: s, COLOUR: c} for s, c in pairs])
    if label_space == "shapes":
        return SHAPES, [{SHAPE: s} for s in range(len(SHAPES))]
    if label_space == "colours":
        return [f"{c} shape" for c in COLOURS], [{COLOUR: c} for c in range(len(COLOURS))]
    named = [(s, p) for p in range(1, len(PATTERNS)) for s in range(len(SHAPES))
             if (s + p) % 2 == 0]                                # every other pair, none plain
    return ([f"{PATTERNS[p]} {SHAPES[s]}" for s, p in named],
            [{SHAPE: s, PATTERN: p} for s, p in named])


# name: (label space, style, what it is). Styles are in _restyle; sketch and rotated are drawn so.
DATASETS = {
    "world": ("pairs", "poster", "24 coloured shapes in a poster style: 12 base classes, 12 novel"),
    "world_shapes": ("shapes", "poster", "10 shapes in any colour, poster style"),
    "world_colours": ("colours", "poster", "8 colours of any shape, poster style"),
    "world_patterns": ("patterns", "poster", "15 patterned shapes, poster style"),
    "world_sketch": ("pairs", "sketch", "the 24 classes as outlines"),
    "world_noise": ("pairs", "noise", "the 24 classes under noise"),
    "world_blur": ("pairs", "blur", "the 24 classes out of focus"),
    "world_rotated": ("pairs", "rotated", "the 24 classes turned by up to 180 degrees"),
}
POSTER = .6             # strength of the poster style, from 0 (none) to 1


def _restyle(pictures, style, generator):
    n = len(pictures)
    if style == "poster":       # inks run into each other, print is coarse, paper shows through
        inks = torch.tensor([[.45, .55, .0], [.0, .45, .55], [.55, .0, .45]])
        mixed = torch.einsum("ij,njhw->nihw", (1 - POSTER) * torch.eye(3) + POSTER * inks, pictures)
        paper = F.interpolate(torch.randn(n, 1, 8, 8, generator=generator), SIZE, mode="bilinear")
        grain = torch.randn(n, 3, SIZE, SIZE, generator=generator)
        return mixed + .25 * POSTER * paper + .1 * POSTER * grain
    if style == "noise":
        return pictures + .25 * torch.randn(n, 3, SIZE, SIZE, generator=generator)
    if style == "blur":
        return F.avg_pool2d(F.pad(pictures, (2, 2, 2, 2), mode="replicate"), 5, stride=1)
    return pictures


@lru_cache(maxsize=None)
def draw(name):
    """A dataset -> (class names, {part: [(picture name, label)]}, {picture name: PIL image}).

    The parts are train, val (empty) and test, 32 and 50 pictures a class. Always the same pictures:
    the seed comes from the dataset's name.
    """
    label_space, style, _ = DATASETS[name]
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    names, fixed = _classes(label_space)
    splits, images = {"val": []}, {}
    max_turn = 180 if style == "rotated" else 20
    for part, n in (("train", 32), ("test", 50)):
        specs = any_specs(len(fixed) * n, generator)        # what a class leaves open is random
        for i, attributes in enumerate(fixed):
            for column, value in attributes.items():
                specs[i * n:(i + 1) * n, column] = value
        pictures = draw_pictures(specs, generator, sketch=style == "sketch", max_turn=max_turn)
        pictures = _restyle(pictures, style, generator).clamp(0, 1)
        pixels = (255 * pictures).byte().permute(0, 2, 3, 1).numpy()
        splits[part] = [(f"{part}/{names[i // n]}/{i % n:02d}.png", i // n)
                        for i in range(len(specs))]
        for (picture, _), array in zip(splits[part], pixels, strict=True):
            images[picture] = Image.fromarray(array)
    return list(names), splits, images


# --------------------------------------------------------------------------------------- to look at

def contact_sheet():
    """A test picture of every class of every dataset, with whole names below it, as one image."""
    wide, gap, head, foot = 12, 6, 24, 28               # foot: room for a name's two words
    cell = 2 * SIZE
    width = gap + wide * (cell + gap)
    sheet = Image.new("RGB", (width, len(DATASETS) * (head + 2 * (cell + foot))), "white")
    pen, y = ImageDraw.Draw(sheet), 0
    for name, (_, _, words) in DATASETS.items():
        classnames, splits, images = draw(name)
        pen.text((gap, y + 4), f"{name}: {words}", fill="black", font_size=12)
        first = {label: picture for picture, label in reversed(splits["test"])}
        for k, classname in enumerate(classnames):
            x, top = gap + k % wide * (cell + gap), y + head + k // wide * (cell + foot)
            sheet.paste(images[first[k]].resize((cell, cell), Image.NEAREST), (x, top))
            pen.multiline_text((x + cell / 2, top + cell), classname.replace(" ", "\n"),
                               fill="black", font_size=10, spacing=1, anchor="ma", align="center")
        y = top + cell + foot
    return sheet.crop((0, 0, width, y))


def main(argv=None):
    p = argparse.ArgumentParser(description="Draw a picture of every class, to look at.")
    p.add_argument("out", nargs="?", type=Path, default=Path(__file__).with_name("world.png"),
                   help="the picture, a .png file; absent: world.png beside this script")
    out = p.parse_args(argv).out
    try:
        contact_sheet().quantize().save(out, format="png", optimize=True)
    except OSError as problem:
        print(f"error: {out}: can't be written ({problem.strerror or problem}); choose another "
              "name", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
