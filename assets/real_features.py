"""What NPT's terms do to real CLIP features, where nothing but the features is there.

    python assets/real_features.py FILE.npz             # writes real_features.csv, some minutes

FILE.npz is what geometry.py reads, with training images z_train, y_train. This is no prompt tuning:
no tower runs, images stay where they are, and texts move by themselves, from zero-shot CLIP on:

    map     all alike, g_k + offset + g_k A B, A (d, 4) and B (4, d), novel ones too: the nearest
            that fixed features come to a prompt that classes share
    free    each base text by itself, g_k + delta_k

Eq. (7) is over all images at once, for as many steps at any tau. The seed deals base and novel
classes, images and n_k. Accuracies are means over classes: else the deal of a few large ones would
decide. The committed rows: OpenAI's ViT-B/32, 55 classes of Caltech101, image features as somebody
cached them, texts "a X" as another project published them.

Rate and steps were to be chosen so, before anything was trained: of a grid that both models share,
the least L_CLIP on held-out training images of base classes (4 of 16), tau = 1, no NPT, mean over
four seeds that no result has. PREDICTIONS, too, were written down before.
"""
import itertools
import math
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))
import data
import evaluate
import losses
from assets import geometry, report

CSV = Path(__file__).with_name("real_features.csv")
TAUS = (1.0, 0.05, 0.01)
MODELS, WEIGHTS = ("map", "free"), ("0", "mean", "sum")
RATES, STEPS, PILOT = (0.0003, 0.001, 0.003, 0.01), (20, 50, 150), range(101, 105)
SHOTS, HELD_OUT, RANK = 16, 4, 4
COLUMNS = ("model", "tau", "w1", "w2", "rate", "steps", "seed", "base", "novel", "H", "few",
           "delta_lcd", "lc_unequal", "delta_mid")

# words: [(model, measure, more, less, range)]: the 95 % interval of more - less lies in the range
ZERO, PLAIN, BALANCED = ("", "", ""), (0.01, "0", "0"), (1.0, "0", "0")          # tau, w_1, w_2
NPT, NPT_BALANCED = (0.01, "mean", "mean"), (1.0, "mean", "mean")
SUM_LC, SUM_MI, SUMS = (0.01, "sum", "0"), (0.01, "0", "sum"), (0.01, "sum", "sum")
UP, DOWN, FAR_DOWN, SMALL = (0, math.inf), (-math.inf, 0), (-math.inf, -.3), (-.5, .5)
PREDICTIONS = {
    "tau = 1, no NPT: base rises (map)": [("map", "base", [BALANCED], [ZERO], UP)],
    "novel falls (map)": [("map", "novel", [BALANCED], [ZERO], DOWN)],
    "long tail: few-shot recall falls (map; free)": [
        (model, "few", [PLAIN], [BALANCED], DOWN) for model in MODELS],
    "NPT: H moves by under 0.5, tau = 1; 0.05; 0.01 (map)": [
        ("map", "H", [(tau, "mean", "mean")], [(tau, "0", "0")], SMALL) for tau in TAUS],
    "at 0.01 as at 1, within 0.5 (map)": [
        ("map", "H", [NPT, BALANCED], [PLAIN, NPT_BALANCED], SMALL)],
    "few-shot recall by under 1 (free)": [("free", "few", [NPT], [PLAIN], (-1, 1))],
    "Eq. (5) summed: Delta_LCD falls by over 0.3 (map; free)": [
        (model, "delta_lcd", [SUM_LC], [PLAIN], FAR_DOWN) for model in MODELS],
    "Var rises (map); falls (free)": [("map", "lc_unequal", [SUM_LC], [PLAIN], UP),
                                      ("free", "lc_unequal", [SUM_LC], [PLAIN], DOWN)],
    "novel falls more (map)": [("map", "novel", [SUM_LC], [PLAIN], DOWN)],
    "Eq. (6) summed: Delta_LCD rises (map; free)": [
        (model, "delta_lcd", [SUM_MI], [PLAIN], UP) for model in MODELS],
    "base falls (free)": [("free", "base", [SUM_MI], [PLAIN], DOWN)],
    "both summed: H falls (map)": [("map", "H", [SUMS], [PLAIN], DOWN)],
}


def start(name, g, seed):
    """What a model learns, where it does nothing yet: a delta (K, d), or an offset, A and B."""
    if name == "free":
        return [torch.zeros_like(g)]
    d = g.shape[1]
    A = torch.randn(d, RANK, generator=torch.Generator().manual_seed(seed))
    return [g.new_zeros(d), A, g.new_zeros(RANK, d)]


def moved(learned, g):
    """Where it takes texts g (K, d): each by its own delta, or all by an offset and A B."""
    if len(learned) == 1:
        return F.normalize(g + learned[0], dim=1)
    offset, A, B = learned
    return F.normalize(g + offset + g @ A @ B, dim=1)


def sizes(w1, w2, K, N):
    """Weights of the mean terms: none, the paper's 0.3 and 0.8, or what its sums come to."""
    sizes_of = {"0": (0, 0), "mean": (0.3, 0.8), "sum": (0.3 * K * (K - 1), 0.8 * N)}
    return sizes_of[w1][0], sizes_of[w2][1]


def objective(g, z, y, lam, w1, w2):
    """Eq. (7) of texts g (K, d) and images z (N, d) of classes y."""
    return losses.npt_loss(losses.similarities(z, g) / lam, z, g, y, w1=w1, w2=w2)[0]


def descend(learned, rate, steps, loss):
    """So many steps of Adam on loss(), the rate going down to 0 as half a cosine."""
    optimizer = torch.optim.Adam(learned)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate / 2 * (1 + math.cos(math.pi * step / steps))
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()


def train(name, seed, g, images, lam, weights, rate, steps):
    """What a model has learned on images, with the weights of L_LC and L_MI."""
    learned = [x.requires_grad_() for x in start(name, g, seed)]
    descend(learned, rate, steps, lambda: objective(moved(learned, g), *images, lam, *weights))
    return [x.detach() for x in learned]


def only(z, y, labels):
    """Images of these classes, numbered by their place among the labels."""
    own = y[:, None] == labels                                                      # (N, K)
    inside = own.any(dim=1)
    return z[inside], own[inside].int().argmax(dim=1)


def deal(K, z, y, seed):
    """By the seed: labels of base and novel classes, and the former's training images in order."""
    generator = torch.Generator().manual_seed(seed)
    base, novel = torch.randperm(K, generator=generator).tensor_split([len(data.halves(K)[0])])
    order = torch.randperm(len(y), generator=generator)
    return base, novel, only(z[order], y[order], base)


def drawn(images, n, skip=0):
    """n_k images of each class k, after so many."""
    z, y = images
    places = torch.cat([(y == k).nonzero()[skip:skip + n_k, 0] for k, n_k in enumerate(n)])
    return z[places], y[places]


def choose(name, z, y, g, lam):
    """(held-out L_CLIP, rate, steps) that is best, by the criterion at the top."""
    tried = []
    for rate, steps in itertools.product(RATES, STEPS):
        found = 0.0
        for seed in PILOT:
            base, _, images = deal(len(g), z, y, seed)
            kept = drawn(images, [SHOTS - HELD_OUT] * len(base))
            held_out = drawn(images, [HELD_OUT] * len(base), skip=SHOTS - HELD_OUT)
            learned = train(name, seed, g[base], kept, lam, (0, 0), rate, steps)
            found += objective(moved(learned, g[base]), *held_out, lam, 0, 0).item()
        tried.append((found / len(PILOT), rate, steps))
    return min(tried)


def measured(g, base, g_novel, novel, few):
    """COLUMNS from "base" on: texts and test images of each half; few (K,): which base classes."""
    recalls = [evaluate.recalls(y, (z @ texts.T).argmax(dim=1) == y, len(texts))[0]     # (K,)
               for texts, (z, y) in ((g, base), (g_novel, novel))]
    accuracies = [recall.nanmean().item() for recall in recalls]
    numbers = (*accuracies, evaluate.harmonic_mean(*accuracies), recalls[0][few].nanmean(),
               losses.delta_lcd(g), losses.lc_parts(g)[1], losses.delta_mid(base[0], g, base[1]))
    return [f"{value:.{2 if place < 4 else 4}f}" for place, value in enumerate(numbers)]


def rows_of(seed, settings, test, training):
    """Rows of one deal of classes and images: zero-shot CLIP, and each model at all settings."""
    z, y, g, lam = test
    base, novel, images = deal(len(g), *training, seed)
    tests, K = (only(z, y, base), only(z, y, novel)), len(base)
    few = torch.tensor(data.class_counts(K, SHOTS, 0.01, seed)) <= report.FEW       # at any tau
    yield ("zero-shot", *[""] * 5, seed, *measured(g[base], tests[0], g[novel], tests[1], few))
    for name, tau, w1, w2 in itertools.product(settings, TAUS, WEIGHTS, WEIGHTS):
        n, (_, *schedule) = data.class_counts(K, SHOTS, tau, seed), settings[name]
        learned = train(name, seed, g[base], drawn(images, n), lam, sizes(w1, w2, K, sum(n)),
                        *schedule)
        g_novel = moved(learned, g[novel]) if name == "map" else g[novel]
        yield (name, f"{tau:g}", w1, w2, *schedule, seed,
               *measured(moved(learned, g[base]), tests[0], g_novel, tests[1], few))


def run(argv=None):
    p = data.Parser(description=__doc__.splitlines()[0])
    p.add_argument("features", type=Path, metavar="FILE.npz", help="see this file's top")
    p.add_argument("--seeds", type=data.whole(2, 100), default=12, help="1 to this many (12)")
    args = p.parse_args(argv)
    test = _, _, g, lam = geometry.read_features(args.features)
    training = geometry.read_features(args.features, "z_train", "y_train")[:2]
    least = training[1].bincount(minlength=g.shape[-2]).min().item()
    if g.ndim != 2 or len(g) < 4 or least < SHOTS:
        raise ValueError(f"{args.features}: expected one g (K, d), 4 classes or more, {SHOTS} "
                         f"training images of each, got g {tuple(g.shape)}, images from {least}")
    rows, settings = [], {name: choose(name, *training, g, lam) for name in MODELS}
    print("held-out L_CLIP, rate, steps:", settings)
    for seed in range(1, args.seeds + 1):
        rows += rows_of(seed, settings, test, training)
        print(f"seed {seed} of {args.seeds}", flush=True)
    data.write_csv(CSV, [COLUMNS, *rows])


def main(argv=None):
    return data.run_script(lambda: run(argv), "interrupted; nothing was kept")


if __name__ == "__main__":
    sys.exit(main())
