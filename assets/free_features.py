"""NPT's objective on free features: where rare classes collapse, and what the two terms change.

    python assets/free_features.py          # prints and writes free_features.csv, under two minutes

The layer-peeled model of the neural-collapse literature: no CLIP, no prompts; texts g_k and images
z are unit vectors that may go anywhere. All images of a class have the same best place, so a class
has one image vector, which counts n_k times. What the terms do here, they do by themselves; what
they fail to do in a prompt learner is then the prompts' doing: g_k can't go anywhere.
"""
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))
import data
import losses
from assets import report
from assets.laboratory import mean_cosine
from assets.real_features import descend

CSV = Path(__file__).with_name("free_features.csv")
D, STEPS, RATE = 512, 300, 0.02                             # CLIP's size; Adam, cosine to 0
WEIGHTS = {"L_CLIP": (0, 0), "L_CLIP + L_LC": (0.3, 0), "L_CLIP + L_MI": (0, 0.8),
           "NPT": (0.3, 0.8)}
CASES = [(K, tau, lam) for K in (5, 50) for tau in (1.0, 0.01) for lam in (1.0, 0.1, 0.01)]
CASES += [(500, 0.01, lam) for lam in (1.0, 0.01)]          # a step costs 20 of 50
COLUMNS = ("K", "tau", "lambda", "objective", "cos_rare", "cos_others", "delta_lcd", "lc_unequal",
           "delta_mid", "p_rare", "p_others")


def objective(g, z, n, lam, w1, w2):
    """Eq. (7) of class texts g (K, d) and class images z (K, d) that count n (K,) times."""
    y = torch.arange(len(g))
    share = n / n.sum()
    L = (share * F.cross_entropy(z @ g.T / lam, y, reduction="none")).sum()
    if w1:                                  # for 500 classes a third of a step
        L = L + w1 * losses.lc_loss(g)
    return L + w2 * losses.mi_loss(z, g, y, weights=len(g) * share)                 # Eq. (7)


def optimise(K, tau, lam, w1, w2, seed=0):
    """The texts and images (K, d) at the end, from a random start in a cone, and n (K,)."""
    generator = torch.Generator().manual_seed(seed)
    n = torch.tensor(data.class_counts(K, 16, tau), dtype=torch.float32)
    cone = torch.randn(2, 1, D, generator=generator)                    # one for each modality
    free = (cone + torch.randn(2, K, D, generator=generator)).requires_grad_()
    descend([free], RATE, STEPS, lambda: objective(*F.normalize(free, dim=-1), n, lam, w1, w2))
    return *F.normalize(free.detach(), dim=-1), n


def measured(g, z, n, lam):
    """COLUMNS from the fifth on. Rare are few-shot classes; in a balanced set the same places."""
    K, y = len(g), torch.arange(len(g))
    counts = data.class_counts(K, 16, 0.01)
    rare = torch.tensor(counts) <= report.FEW
    p = losses.class_probabilities(z, g, lam).diagonal()
    return (mean_cosine(g[rare]), mean_cosine(g[~rare]), losses.delta_lcd(g).item(),
            losses.lc_parts(g)[1].item(), losses.delta_mid(z, g, y).item(),
            p[rare].mean().item(), p[~rare].mean().item())


def run(argv=None):
    data.Parser(description=__doc__.splitlines()[0]).parse_args(argv)
    rows = []
    for K, tau, lam in CASES:
        for name, weights in WEIGHTS.items():
            g, z, n = optimise(K, tau, lam, *weights)
            cells = [f"{value:.4f}" for value in measured(g, z, n, lam)]
            rows.append((K, f"{tau:g}", f"{lam:g}", name, *cells))
            print("  ".join(f"{str(cell):>9}" for cell in rows[-1]), flush=True)
    data.write_csv(CSV, [COLUMNS, *rows])
    print(f"written: {CSV.name}")


def main(argv=None):
    return data.run_script(lambda: run(argv))


if __name__ == "__main__":
    sys.exit(main())
