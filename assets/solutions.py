"""SOLUTIONS of the exercises in exercises.md, for teachers: look away if you want to solve them.

    python assets/exercises.py --answers assets/solutions.py        # all eight are solved

A student's file begins as these functions with their docstrings and without their bodies.
"""
import math

import torch


def n_k(tau):
    """Images of K = 5 classes, at most 16, for tau = 0.05 or 0.01, worked out by hand -> five."""
    # 16 tau^(k/4) is 16, 7.57, 3.58, 1.69, 0.8 and 16, 5.06, 1.6, 0.51, 0.16: cut off, at least 1.
    # Both end at one image of 16, far from tau: what tau sets is how soon.
    return {0.05: [16, 7, 3, 1, 1], 0.01: [16, 5, 1, 1, 1]}[tau]


def etf(K):
    """K vectors of a simplex ETF, Eq. (3): K rows, each of length 1, of a size of your choice."""
    m = torch.eye(K, dtype=torch.float64) - 1 / K       # Eq. (2) with u = I: axes less their mean
    return math.sqrt(K / (K - 1)) * m


def lc_sum(g):
    """Eq. (5) as printed, a sum, with E_W = 1: g (K, d) -> a number. Loops are fine."""
    K = len(g)
    mu = -1 / (K - 1)
    return sum((g[i] @ g[j] - mu) ** 2 for i in range(K) for j in range(K) if i != j)


def delta_lcd(g):
    """Definition 2 of unit vectors g (K, d) by way of their mean gbar -> a number."""
    K = len(g)
    gbar = g.mean(dim=0)
    # ||gbar||^2 = 1/K^2 (K + sum_{i != j} S_ij), as each S_ii is 1: solve for the mean of S_ij
    return K / (K - 1) * (gbar @ gbar)


def same_predictions(m):
    """m (K, d), a simplex ETF with m[:, -1] = 0 -> unit vectors (K, d) with Delta_LCD above 0.8.

    Every image must be given the same class by yours as by m.
    """
    # A part c that all texts share, in the free direction: every logit of an image moves alike.
    # Lengths stay 1 with cos a of m and sin a of c: gbar = sin a c, Delta = K/(K-1) sin^2 a.
    c = torch.zeros_like(m[0])
    c[-1] = 1
    return math.sqrt(0.1) * m + math.sqrt(0.9) * c


def lc_parts(g):
    """mean L_LC of g (K, d) in two parts -> (Delta_LCD^2, Var of the cosines of pairs i != j)."""
    K = len(g)
    mu = -1 / (K - 1)
    misses = [float(g[i] @ g[j]) - mu for i in range(K) for j in range(K) if i != j]
    delta = sum(misses) / len(misses)
    # The mean of squares is the square of the mean plus the variance; the mean is Delta_LCD.
    return delta ** 2, sum((miss - delta) ** 2 for miss in misses) / len(misses)


def text_gradient(z, g, y, lam):
    """dL_CLIP/dg_k for all k, with features as free vectors: z (N, d), g (K, d), y (N,) -> (K, d).

    No autograd. y counts from 0; class k may have no image in the batch.
    """
    gradient = torch.zeros_like(g)
    for z_n, label in zip(z, y, strict=True):
        p = torch.exp(g @ z_n / lam)
        p = p / p.sum()
        for k in range(len(g)):
            own = 1 if k == label else 0
            gradient[k] += (p[k] - own) * z_n / (len(z) * lam)
    return gradient


def why_zero():
    """Why these gradients sum to zero: "A", "B", "C" or "D"."""
    return "C"              # for one image the weights of z_n over k are the p_k less one 1


def lc_floor(K, d):
    """What the sum of Eq. (5) can't fall below for K unit vectors of size d -> a number."""
    # sum_{i != j} (S_ij - mu)^2 = (sum_ij S_ij^2 - K) - 2 mu sum_{i != j} S_ij + K (K-1) mu^2.
    # Welch: sum_ij S_ij^2 >= K^2 / d. And sum_ij S_ij = ||sum_k g_k||^2 >= 0, so the middle part
    # is at least 2/(K-1) (-K). Together K^2/d - K - 2K/(K-1) + K/(K-1) = K^2 (1/d - 1/(K-1)).
    return max(0.0, K ** 2 * (1 / d - 1 / (K - 1)))


def five_in_the_plane():
    """Five unit vectors (5, 2) whose sum of Eq. (5) is at that floor."""
    # Both bounds are met where the vectors sum to zero and lean to no direction: a pentagon.
    angles = [2 * math.pi * k / 5 for k in range(5)]
    return [[math.cos(angle), math.sin(angle)] for angle in angles]


def three_runs():
    """(tau, shots, epochs) of balanced, of long-tailed, and of a balanced control: three rows."""
    # 192, 45 and 48 images in batches of 4, a small last one dropped: an epoch has 48, 11 and 12
    # steps, and 5 x 48 = 240, 22 x 11 = 242, 20 x 12 = 240.
    return [(1, 16, 5), (0.01, 16, 22), (1, 4, 20)]


def gain(differences, t):
    """n differences of paired runs -> (their mean, half of its 95 % interval); t is Student's."""
    n = len(differences)
    mean = sum(differences) / n
    s = math.sqrt(sum((x - mean) ** 2 for x in differences) / (n - 1))
    return mean, t * s / math.sqrt(n)


def what_follows():
    """The letters of the statements that follow from the table, as {"A", "B"}."""
    # A: its interval leaves out 0. C: the one at 0.05 does not. F: as many images and steps.
    # The two lines: at tau = 1 NPT gained 0.8 in these eight runs, at 0.05 and 0.01 they do not
    # show whether it does. Of the 11.8 points lost from tau = 1 to 0.01 about 7.9 go with
    # imbalance, the rest with having fewer images.
    return {"A", "C", "F"}
