"""What NPT minimises and what it measures: Eqs. (1)-(3), (5)-(7), Defs. 1-3, signs of Sec. 3.2.

    K   classes              g         (K, d), text features G_l(t_k), one row a class,
    N   images in a batch              or (N, K, d), one such set an image, as CoCoOp has
    d   feature size         z         (N, d), image features G_v(f)
    mu  -1 / (K - 1), the    y         (N,), labels 0..K-1, int64
        cosine in an ETF     E_W, E_H  squared lengths of text and image features, 1 in the paper

Features are used as they come, unit vectors where E_W = E_H = 1; only npt_loss changes lengths.
A loss or measure of texts alone is taken for each image and then averaged where g is (N, K, d).
Losses and Definitions 2, 3 look at shapes, not at values, so that they never wait for a GPU.
"""
import math

import torch
import torch.nn.functional as F


def _check(caller, z, y=None, g=None):
    """Stop where shapes do not fit: broadcasting would accept some and return a wrong number."""
    z_fits = z.ndim == 2 and len(z) > 0
    y_fits = y is None or y.shape == z.shape[:1] and y.dtype == torch.int64
    g_fits = g is None or g.ndim in (2, 3) and g.shape[:-2] in ((), z.shape[:1])
    if not (z_fits and y_fits and g_fits and (g is None or g.shape[-1] == z.shape[-1])):
        got = ", ".join(f"{tuple(x.shape)} {x.dtype}" for x in (z, y, g) if x is not None)
        raise ValueError(f"{caller}: wants z (N, d) or logits (N, K), N >= 1; y (N,) int64; "
                         f"g (K, d) or (N, K, d) where it takes them; got {got}")


def _check_texts(caller, g):
    """As _check, where no image enters."""
    if g.ndim not in (2, 3) or g.shape[-2] < 2 or len(g) == 0:
        raise ValueError(f"{caller}: wants g (K, d) or (N, K, d) with K >= 2, mu has no value at "
                         f"K = 1; got g {tuple(g.shape)}")


# Sec. 3.1: prediction -----------------------------------------------------------------------------

def similarities(z, g):
    """<z_n, g_k> for each image and class, (N, K), whether images share one g or have one each."""
    _check("similarities", z, g=g)
    return (z[:, None] @ g.mT)[:, 0]


def class_probabilities(z, g, lam):
    """p_soft(y = k | x) = exp(<z, g_k> / lam) / sum_i exp(<z, g_i> / lam), Eq. (1); (N, K).

    lam is the temperature lambda itself, 0.01 in CLIP.
    """
    return (similarities(z, g) / lam).softmax(dim=-1)                               # Eq. (1)


# Sec. 3.2: the simplex ETF and three signs of neural collapse -------------------------------------

def simplex_etf(K, d):
    """K unit vectors of size d with every two at cosine -1/(K - 1), Definition 1; rows m_i, (K, d).

        M = sqrt(K / (K-1)) u (I_K - 1/K 1 1^T),  u^T u = I_K       Eq. (2), printed as columns
        <m_i, m_j> = K / (K-1) delta_ij - 1 / (K-1)                 Eq. (3)

    Paper vs. code: Definition 1 allows d = K - 1, where Eq. (2) has no u: K orthonormal columns
    need d >= K. The vectors span only K - 1 directions: for d = K - 1 they are written in these.
    """
    if K < 2 or d < K - 1:
        raise ValueError(f"simplex_etf: it takes K >= 2 and d >= K - 1, got K = {K}, d = {d}")
    centring = torch.eye(K, dtype=torch.float64) - 1 / K
    u = torch.eye(d, K, dtype=torch.float64)        # u may be any rotation: here always the same
    if d < K:
        u = torch.linalg.qr(centring[:, :d]).Q.T    # (d, K): rows span what centring leaves
    M = math.sqrt(K / (K - 1)) * u @ centring       # (d, K)                        # Eq. (2)
    return M.T.contiguous().to(torch.get_default_dtype())


def _class_means(values, y):
    """Avg_i within each class, (N, d) -> (K, d)."""
    n = y.bincount()
    return values.new_zeros(len(n), values.shape[1]).index_add(0, y, values) / n[:, None]


def _prototypes(caller, z, y):
    """z_k, (K, d), K = the largest label + 1. It looks at y."""
    _check(caller, z, y)
    present = y.unique().tolist()
    if len(present) < 2 or present != list(range(len(present))):
        raise ValueError(f"{caller}: every class 0..K-1 needs an image, and K >= 2; got "
                         f"{len(present)} different labels from {present[0]} to {present[-1]}")
    return _class_means(z, y)


def _normalized(z_k):
    """z~_k = (z_k - z_G) / ||z_k - z_G||, (K, d).

    Paper vs. code: z_G is printed as the average of all images. Here it is that of the prototypes,
    the same on balanced data; else the former leans to large classes and misjudges a perfect ETF.
    """
    return F.normalize(z_k - z_k.mean(dim=0), dim=1)


def feature_collapse(z, y):
    """Sec. 3.2: spread within the classes over spread between them. 0: each class is one point.

        Avg_k Avg_i ||z_{k,i} - z_k||^2 / Avg_k ||z_k - z_G||^2  =  Tr(Sigma_W) / Tr(Sigma_B)

    Open point: the paper has Sigma_k -> 0 and no number for the way there. A trace is 0 only where
    the covariance is, and the ratio makes up for CLIP's narrow cone. Papyan et al. (2020) have
    Tr(Sigma_W Sigma_B^+) / K, whose pseudo-inverse needs a cut-off. inf where prototypes coincide.
    """
    z_k = _prototypes("feature_collapse", z, y)
    within = (z - z_k[y]).square().sum(dim=1, keepdim=True)                         # (N, 1)
    between = (z_k - z_k.mean(dim=0)).square().sum(dim=1)                           # (K,)
    return _class_means(within, y).mean() / between.mean()


def prototype_collapse(z, y):
    """Sec. 3.2: sqrt( Avg_{i != j} (<z~_i, z~_j> + 1 / (K-1))^2 ). 0: a simplex ETF, Eq. (3)."""
    return lcd_rms(_normalized(_prototypes("prototype_collapse", z, y)))


def classifier_collapse(z, g, y):
    """Sec. 3.2: sqrt( Avg_k ||w~_k - z~_k||^2 ), w~_k = g_k / ||g_k||. 0: the same directions.

    As printed, prototypes are centred and classifier vectors are not: a part that all g_k share
    counts as distance, though it moves no prediction. Eq. (5) counts it too. g is (K, d).

    Paper vs. code: the printed w~_k = z_k must mean z~_k, the only one that can satisfy Eq. (3).
    """
    z_k = _prototypes("classifier_collapse", z, y)
    if g.shape != z_k.shape:
        raise ValueError(f"classifier_collapse: wants g {tuple(z_k.shape)}, got {tuple(g.shape)}")
    distances = F.normalize(g, dim=1) - _normalized(z_k)
    return distances.square().sum(dim=1).mean().sqrt()


def collapses(z, g, y):
    """The three above by name, as floats; CoCoOp's g (N, K, d) is averaged over the images first.

    nan for all three where one of the K classes of g has no image, or K = 1: nothing to measure.
    """
    _check("collapses", z, y, g)
    if g.ndim == 3:
        g = g.mean(dim=0)                                                           # (K, d)
    values = [math.nan] * 3
    if 1 < len(g) <= len(y.unique()):
        values = [feature_collapse(z, y), prototype_collapse(z, y), classifier_collapse(z, g, y)]
    names = ("feature_collapse", "prototype_collapse", "classifier_collapse")
    return {name: float(value) for name, value in zip(names, values, strict=True)}


# Sec. 4.1: two measures for a V-L model -----------------------------------------------------------

def _off_diagonal(S):
    """S (..., K, K) with 0 for i = j."""
    return S.masked_fill(torch.eye(S.shape[-1], dtype=torch.bool, device=S.device), 0)


def _pair_errors(g, E_W):
    """<g_i, g_j> - E_W mu for i != j, else 0; (..., K, K), the inside of Definition 2, Eq. (5)."""
    mu = -1 / (g.shape[-2] - 1)                                                     # Def. 2
    S = g @ g.mT                                            # (..., K, K), S_ij of Sec. 4.3
    return _off_diagonal(S - E_W * mu)


def _pair_mean(errors):
    """Avg_{i != j}, one value a set of text features; the diagonal holds zeros."""
    K = errors.shape[-1]
    return errors.sum(dim=(-2, -1)) / (K * (K - 1))


def _own_errors(z, g, y, E_W, E_H):
    """<z_{k,i}, g_k> - sqrt(E_W E_H), image and own class; (N,), inside Definition 3, Eq. (6)."""
    # not g[y], whose gradient is added up in no fixed order on several cores
    g_own = g.index_select(0, y) if g.ndim == 2 else g[torch.arange(len(y), device=y.device), y]
    s_own = (z * g_own).sum(dim=-1)                         # (N,), S'_ik of Sec. 4.3
    return s_own - math.sqrt(E_W * E_H)


def delta_lcd(g, E_W=1.0):
    """Delta_LCD = Avg_{i != j} { <g_i, g_j> - E_W mu }, Definition 2.

    For g_k of squared length E_W it equals K / (K-1) ||Avg_k g_k||^2, what all texts share: never
    negative, and 0 for every set that sums to zero, an ETF or not. lcd_rms tells these apart.
    """
    _check_texts("delta_lcd", g)
    return _pair_mean(_pair_errors(g, E_W)).mean()                                  # Def. 2


def lcd_rms(g, E_W=1.0):
    """Root mean square of what Definition 2 averages. 0: a simplex ETF. Not in the paper."""
    _check_texts("lcd_rms", g)
    return _pair_mean(_pair_errors(g, E_W).square()).sqrt().mean()


def lc_parts(g, E_W=1.0):
    """mean L_LC = Delta_LCD^2 + Var_{i != j} <g_i, g_j>, an identity; not in the paper.

    -> (shared, unequal), both >= 0: what all texts share, which moves no prediction, and how
    unequal the angles are. The two add up to lc_loss, averages over images too.
    """
    _check_texts("lc_parts", g)
    errors = _pair_errors(g, E_W)
    delta = _pair_mean(errors)                              # Def. 2, one value a set
    around = _off_diagonal(errors - delta[..., None, None])
    return delta.square().mean(), _pair_mean(around.square()).mean()


def delta_mid(z, g, y, E_W=1.0, E_H=1.0):
    """Delta_MID = Avg_{k,i} { <z_{k,i}, g_k> - sqrt(E_W E_H) }, Definition 3; over all images.

    Paper vs. code: Remark 1 calls lower better, but with lengths within sqrt(E_W), sqrt(E_H) this
    is at most 0, and 0 is best: image and text coincide. Signed as printed; |.| should get smaller.
    """
    _check("delta_mid", z, y, g)
    return _own_errors(z, g, y, E_W, E_H).mean()                                    # Def. 3


# Sec. 4.2: the losses -----------------------------------------------------------------------------

def _reduced(caller, total, terms, reduction):
    """The sum as printed, or the mean over its terms."""
    if reduction not in ("mean", "sum"):
        raise ValueError(f"{caller}: reduction must be 'mean' or 'sum', got {reduction!r}")
    return total / terms if reduction == "mean" else total


def lc_loss(g, E_W=1.0, reduction="mean"):
    """Language-modality collapse regularizer, Eq. (5): every two text features at an ETF's angle.

        L_LC = sum_{i != j} (<g_i, g_j> - E_W mu)^2

    reduction  "mean" over the K (K-1) ordered pairs, or "sum" as printed
    No label enters: a class with 1 image counts as much as one with 16. Not below lc_floor.

    Paper vs. code: the mean, not the printed sum. The sum has 20 terms for 5 classes and 249,500
    for 500: one w_1 for all datasets only makes sense for the mean, which Definition 2 takes too.
    """
    _check_texts("lc_loss", g)
    K = g.shape[-2]
    total = _pair_errors(g, E_W).square().sum(dim=(-2, -1))                         # Eq. (5)
    return _reduced("lc_loss", total, K * (K - 1), reduction).mean()


def lc_floor(K, d, E_W=1.0, reduction="mean"):
    """What L_LC cannot fall below for K text features of size d and squared length E_W.

        sum:  (E_W K)^2 (1/d - 1/(K-1)) for K > d + 1; 0 up to there, where a simplex ETF exists

    Put Welch's bound, ||S||_F^2 >= (E_W K)^2 / d, and sum_{i != j} S_ij >= -E_W K into Eq. (5),
    multiplied out. Exactly the tight frames that sum to zero get there; not every K and d has one
    (5 and 3 do not). ImageNet, K = 1000 and d = 512: the sum is at least 952, the mean 0.00095.
    """
    if K < 2 or d < 1:
        raise ValueError(f"lc_floor: wants K >= 2 and d >= 1, got K = {K}, d = {d}")
    total = (E_W * K) ** 2 * max(0.0, 1 / d - 1 / (K - 1))
    return _reduced("lc_floor", total, K * (K - 1), reduction)


def mi_loss(z, g, y, E_W=1.0, E_H=1.0, reduction="mean", weights=None):
    """Multi-modality isomorphism regularizer, Eq. (6): each image feature onto its class's text.

        L_MI = sum_k sum_i (<z_{k,i}, g_k> - sqrt(E_W E_H))^2

    Paper vs. code: the sum runs over the training set, of which a step sees one batch. "mean"
    divides by its N, as L_CLIP does: one w_2 for every batch size. "sum" is as printed, over it.
    Either way a class weighs as many images as it has, though Sec. 4.3 calls the term uninfluenced
    by imbalance. weights (K,), one for the images of each class: balancing_weights make it so.
    """
    _check("mi_loss", z, y, g)
    squares = _own_errors(z, g, y, E_W, E_H).square()                               # Eq. (6)
    if weights is not None:
        squares = weights[y] * squares
    return _reduced("mi_loss", squares.sum(), len(z), reduction)


def balancing_weights(n):
    """N / (K n_k) for class counts n (K,): a mean over images so weighted is one over classes."""
    return n.sum() / (len(n) * n)


def log_prior(n):
    """log(n_k / N), (K,), of class counts n (K,): Menon et al. (2021), logit adjustment.

    Added to the logits in training and left out in testing, it makes cross-entropy on a long-tailed
    training set aim at the mean over classes. Not in the paper; the first thing to try beside it.
    """
    return (n / n.sum()).log()


def clip_loss(logits, y):
    """L_CLIP = -1/N sum_x sum_k y_{x,k} log p_soft(y = k | x), below Eq. (7), of logits (N, K).

    Paper vs. code: the logarithm is missing in print. The gradients of Sec. 4.3 are those of this
    cross-entropy, but for a factor 1 / (N lambda), and p_k in place of p_k' in the repulsion term
    of the text gradient.
    """
    _check("clip_loss", logits, y)
    return F.cross_entropy(logits, y)


def npt_loss(logits, z, g, y, *, w1=0.3, w2=0.8, E_W=1.0, E_H=1.0, reduction="mean",
             mi_weights=None):
    """L = L_CLIP + w1 L_LC + w2 L_MI, Eq. (7), from unit features; w = 0 switches a term off.

    mi_weights (K,) weigh the images of each class in L_MI; None: all alike, as printed
    -> loss and, for the log, {"l_clip", "l_lc", "l_mi"}: unweighted, detached, 0 where switched off

    Open point: the paper asks for ||g_k||^2 <= E_W and ||z||^2 <= E_H and not how. CLIP's features
    have length 1 (Sec. 3.1), so L_LC and L_MI see them times sqrt(E_W) and sqrt(E_H): met with
    equality. L_CLIP keeps the logits of the unit features: a longer feature is but another lambda.
    So E_W, E_H are no new freedom: w1 E_W^2 and w2 E_W E_H would do the same.
    """
    if logits.shape != z.shape[:1] + g.shape[-2:-1]:        # each term checks what it alone takes
        raise ValueError(f"npt_loss: wants logits (N, K), z (N, d), g (K, d) or (N, K, d); got "
                         f"{tuple(logits.shape)}, {tuple(z.shape)} and {tuple(g.shape)}")
    if min(w1, w2) < 0 or min(E_W, E_H) <= 0:
        raise ValueError(f"npt_loss: wants w1, w2 >= 0 and E_W, E_H > 0; "
                         f"got w1={w1}, w2={w2}, E_W={E_W}, E_H={E_H}")
    g, z = math.sqrt(E_W) * g, math.sqrt(E_H) * z
    l_clip = clip_loss(logits, y)
    l_lc = l_mi = torch.zeros_like(l_clip)
    if w1:
        l_lc = lc_loss(g, E_W, reduction)
    if w2:
        l_mi = mi_loss(z, g, y, E_W, E_H, reduction, mi_weights)
    loss = l_clip + w1 * l_lc + w2 * l_mi                                           # Eq. (7)
    return loss, {"l_clip": l_clip.detach(), "l_lc": l_lc.detach(), "l_mi": l_mi.detach()}


# Sec. 4.3: what pulls a class's text, and what pushes it ------------------------------------------

def cohesion_repulsion(p, y):
    """Weights of the two terms of dL_CLIP/dG_l(t_k), probabilities p (N, K) -> two of (K,).

        cohesion_k  = sum over the class's own images of (1 - p_k)
        repulsion_k = sum over all other images of p_k
        cohesion_k - repulsion_k = n_k - sum over all images of p_k

    Remark 2 argues with the counts n_k and N - n_k. What decides is the last line: whether a class
    is predicted more or less often than it occurs.
    """
    _check("cohesion_repulsion", p, y)
    own = F.one_hot(y, p.shape[1]).to(p.dtype)                                      # (N, K)
    return (own * (1 - p)).sum(dim=0), ((1 - own) * p).sum(dim=0)
