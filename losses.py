"""What NPT minimises and what it measures: Eqs. (1)-(3), (5)-(7), Definitions 1-3, the properties of Sec. 3.2.

    K   classes              g         (K, d), text features G_l(t_k), one row a class,
    N   images in a batch              or (N, K, d), one such set an image, as CoCoOp has
    d   feature size         z         (N, d), image features G_v(f)
    mu  -1 / (K - 1), the    y         (N,), labels 0..K-1, int64
        cosine in an ETF     E_W, E_H  squared lengths of text and image features, both 1 in the paper

Features are used as they come: unit vectors where E_W = E_H = 1. Only npt_loss changes their length, to meet the
E_W and E_H it is given. The losses and Definitions 2, 3 never wait for a GPU: they look at shapes, not at values.
"""
import math

import torch
import torch.nn.functional as F


def _check(caller, z, y=None, g=None):
    """Stop where shapes do not fit: broadcasting would accept some of them and return a wrong number."""
    fits = (z.ndim == 2 and len(z) > 0 and (y is None or y.shape == z.shape[:1] and y.dtype == torch.int64)
            and (g is None or g.ndim in (2, 3) and g.shape[:-2] in ((), z.shape[:1]) and g.shape[-1] == z.shape[-1]))
    if not fits:
        got = ", ".join(f"{tuple(x.shape)} {x.dtype}" for x in (z, y, g) if x is not None)
        raise ValueError(f"{caller}: wants z (N, d) or logits (N, K), N >= 1; y (N,) int64; g (K, d) or (N, K, d) "
                         f"where it takes them; got {got}")


def _check_reduction(caller, reduction):
    if reduction not in ("mean", "sum"):
        raise ValueError(f"{caller}: reduction must be 'mean' or 'sum', got {reduction!r}")


def _similarities(z, g):
    """<z_n, g_k> for each image and class, (N, K), whether the images share one g or have one each."""
    return torch.einsum("...d,...kd->...k", z, g)


# Sec. 3.1: prediction -------------------------------------------------------------------------------------------------

def class_probabilities(z, g, lam):
    """p_soft(y = k | x) = exp(<z, g_k> / lam) / sum_i exp(<z, g_i> / lam), Eq. (1); (N, K).

    lam is the temperature lambda itself, 0.01 in CLIP, which stores log(1 / lambda).
    """
    _check("class_probabilities", z, g=g)
    return (_similarities(z, g) / lam).softmax(dim=-1)  # Eq. (1)


# Sec. 3.2: the simplex ETF and three signs of neural collapse ---------------------------------------------------------

def simplex_etf(K, d):
    """K unit vectors of size d with every two at cosine -1/(K - 1), Definition 1; rows m_i, (K, d).

        M = sqrt(K / (K-1)) u (I_K - 1/K 1 1^T),  u^T u = I_K                 Eq. (2); the paper's columns are rows here
        <m_i, m_j> = K / (K-1) delta_ij - 1 / (K-1)                           Eq. (3)

    u may be any rotation; here it is the first K columns of the identity, so the same arguments give the same vectors.

    Paper vs. code: Definition 1 allows d = K - 1, but Eq. (2) then has no u: K orthonormal columns need d >= K. The
    vectors sum to zero and so span only K - 1 directions; for d = K - 1 they are written in a basis of these.
    """
    if K < 2 or d < K - 1:
        raise ValueError(f"simplex_etf: {K} vectors of size {d} cannot form one; it takes K >= 2 and d >= K - 1")
    centring = torch.eye(K, dtype=torch.float64) - 1 / K
    if d >= K:
        u = torch.eye(d, K, dtype=torch.float64)
    else:
        u = torch.linalg.qr(centring[:, :d]).Q.T        # (d, K): orthonormal rows that span what centring leaves
    M = math.sqrt(K / (K - 1)) * u @ centring           # Eq. (2), (d, K)
    return M.T.contiguous().to(torch.get_default_dtype())


def _class_means(caller, values, y):
    """Avg_i within each class, (N, d) -> (K, d) with K = the largest label + 1. Unlike the losses it looks at y."""
    _check(caller, values, y)
    present = y.unique().tolist()
    if len(present) < 2 or present != list(range(len(present))):
        raise ValueError(f"{caller}: every class 0..K-1 needs an image, and K >= 2; got {len(present)} different "
                         f"labels from {present[0]} to {present[-1]}")
    sums = values.new_zeros(len(present), values.shape[1]).index_add(0, y, values)
    return sums / y.bincount()[:, None]


def _normalized_prototypes(z_k):
    """z~_k = (z_k - z_G) / ||z_k - z_G||, (K, d).

    Paper vs. code: z_G is printed as the average of all images. Here it is the average of the prototypes, the same
    number on balanced data. With unequal n_k the average of all images leans to the large classes, and a perfect
    simplex ETF of prototypes would not be measured as one.
    """
    return F.normalize(z_k - z_k.mean(dim=0), dim=1)


def feature_collapse(z, y):
    """Sec. 3.2, feature collapse: spread within the classes over spread between them. 0: each class is one point.

        Avg_k Avg_i ||z_{k,i} - z_k||^2 / Avg_k ||z_k - z_G||^2  =  Tr(Sigma_W) / Tr(Sigma_B)

    Open point: the paper has Sigma_k -> 0 and no number for the way there. A trace is 0 only where the covariance is,
    and the ratio makes up for CLIP's features filling a narrow cone. Papyan et al. (2020) report
    Tr(Sigma_W Sigma_B^+) / K instead, whose pseudo-inverse needs a cut-off. inf where all prototypes coincide.
    """
    z_k = _class_means("feature_collapse", z, y)
    within = (z - z_k[y]).square().sum(dim=1, keepdim=True)                         # (N, 1)
    between = (z_k - z_k.mean(dim=0)).square().sum(dim=1)                           # (K,)
    return _class_means("feature_collapse", within, y).mean() / between.mean()


def prototype_collapse(z, y):
    """Sec. 3.2, prototype collapse: how far the cosines of the z~_k are from Eq. (3). 0: a simplex ETF.

        sqrt( Avg_{i != j} (<z~_i, z~_j> + 1 / (K-1))^2 )
    """
    return lcd_rms(_normalized_prototypes(_class_means("prototype_collapse", z, y)))


def classifier_collapse(z, g, y):
    """Sec. 3.2, classifier collapse: distance from w~_k = g_k / ||g_k|| to z~_k. 0: the same directions.

        sqrt( Avg_k ||w~_k - z~_k||^2 ),   from 0 to 2

    As printed, prototypes are centred and classifier vectors are not: a part that all g_k share counts as distance,
    though it moves no prediction. Eq. (5) counts it too. g is (K, d); average that of CoCoOp over the images first.

    Paper vs. code: the printed w~_k = z_k must mean z~_k, the only one of the two that can satisfy Eq. (3).
    """
    z_k = _class_means("classifier_collapse", z, y)
    if g.shape != z_k.shape:
        raise ValueError(f"classifier_collapse: wants g {tuple(z_k.shape)} to fit z and y, got {tuple(g.shape)}")
    return (F.normalize(g, dim=1) - _normalized_prototypes(z_k)).square().sum(dim=1).mean().sqrt()


# Sec. 4.1: two measures for a V-L model -------------------------------------------------------------------------------

def _pair_errors(caller, g, E_W):
    """<g_i, g_j> - E_W mu for i != j, and 0 for i = j; (..., K, K), the inside of Definition 2 and Eq. (5)."""
    if g.ndim not in (2, 3) or g.shape[-2] < 2 or len(g) == 0:
        raise ValueError(f"{caller}: wants g (K, d) or (N, K, d) with K >= 2, mu has no value at K = 1; "
                         f"got g {tuple(g.shape)}")
    K = g.shape[-2]
    mu = -1 / (K - 1)                                                               # Def. 2
    S = g @ g.mT                                                                    # (..., K, K), S_ij of Sec. 4.3
    return (S - E_W * mu).masked_fill(torch.eye(K, dtype=torch.bool, device=g.device), 0)


def _own_errors(caller, z, g, y, E_W, E_H):
    """<z_{k,i}, g_k> - sqrt(E_W E_H) for each image and its own class; (N,), the inside of Definition 3 and Eq. (6)."""
    _check(caller, z, y, g)
    s_own = _similarities(z, g).gather(-1, y[:, None]).squeeze(-1)                  # (N,), S'_ik of Sec. 4.3
    return s_own - math.sqrt(E_W * E_H)


def _pair_mean(errors):
    """Avg_{i != j}, one value a set of text features; the diagonal holds zeros."""
    K = errors.shape[-1]
    return errors.sum(dim=(-2, -1)) / (K * (K - 1))


def delta_lcd(g, E_W=1.0):
    """Delta_LCD = Avg_{i != j} { <g_i, g_j> - E_W mu }, Definition 2.

    Signed. For g_k of squared length E_W it equals ||sum_k g_k||^2 / (K (K-1)): never negative, and 0 for every set
    that sums to zero, a simplex ETF or not. lcd_rms tells these apart. Averaged over images where g is (N, K, d).
    """
    return _pair_mean(_pair_errors("delta_lcd", g, E_W)).mean()                     # Def. 2


def lcd_rms(g, E_W=1.0):
    """The root mean square of what Definition 2 averages; not in the paper.

    For g_k of squared length E_W it is 0 only at a simplex ETF. It is the square root of lc_loss's mean, taken for each
    image before averaging where g is (N, K, d).
    """
    return _pair_mean(_pair_errors("lcd_rms", g, E_W).square()).sqrt().mean()


def delta_mid(z, g, y, E_W=1.0, E_H=1.0):
    """Delta_MID = Avg_{k,i} { <z_{k,i}, g_k> - sqrt(E_W E_H) }, Definition 3; the average is over all images.

    Paper vs. code: Remark 1 calls lower better, but with lengths within sqrt(E_W), sqrt(E_H) this is at most 0, and 0
    is best: image and text feature coincide. The sign is kept as printed; its magnitude is what should get smaller.
    """
    return _own_errors("delta_mid", z, g, y, E_W, E_H).mean()                       # Def. 3


# Sec. 4.2: the losses -------------------------------------------------------------------------------------------------

def lc_loss(g, E_W=1.0, reduction="mean"):
    """Language-modality collapse regularizer, Eq. (5): the text features of every two classes at the angle of an ETF.

        L_LC = sum_{i != j} (<g_i, g_j> - E_W mu)^2

    reduction  "mean" over the K (K-1) ordered pairs, or "sum" as printed; (N, K, d) is then averaged over the images
    No label enters, so a class with 1 image counts as much as one with 16. It cannot fall below lc_floor.

    Paper vs. code: the mean, not the printed sum. The sum has 20 terms for 5 classes and 249,500 for 500, so that one
    w_1 for all datasets only makes sense for the mean, which is also what Definition 2 takes.
    """
    _check_reduction("lc_loss", reduction)
    squares = _pair_errors("lc_loss", g, E_W).square()                              # Eq. (5), the summands
    return (_pair_mean(squares) if reduction == "mean" else squares.sum(dim=(-2, -1))).mean()


def lc_floor(K, d, E_W=1.0, reduction="mean"):
    """What L_LC cannot fall below for K text features of size d and squared length E_W.

        sum:  (E_W K)^2 (1/d - 1/(K-1)) for K > d + 1, and 0 up to there, where a simplex ETF exists

    Beyond, Welch's bound says ||S||_F^2 >= (E_W K)^2 / d, and sum_{i != j} S_ij >= -E_W K holds for any vectors; put
    both into Eq. (5), multiplied out. Exactly the tight frames that sum to zero get there; not every K and d has one
    (5 and 3 do not). For ImageNet's 1,000 classes and d = 512 the sum stays at 952 or more, the mean at 0.00095.
    """
    _check_reduction("lc_floor", reduction)
    if K < 2 or d < 1:
        raise ValueError(f"lc_floor: wants K >= 2 and d >= 1, got K = {K}, d = {d}")
    total = (E_W * K) ** 2 * max(0.0, 1 / d - 1 / (K - 1))
    return total / (K * (K - 1)) if reduction == "mean" else total


def mi_loss(z, g, y, E_W=1.0, E_H=1.0, reduction="mean"):
    """Multi-modality isomorphism regularizer, Eq. (6): each image feature onto the text feature of its class.

        L_MI = sum_k sum_i (<z_{k,i}, g_k> - sqrt(E_W E_H))^2

    Paper vs. code: the sum runs over the training set, of which a step sees one batch. "mean" divides by the batch's
    N, as L_CLIP does, so that w_2 keeps its weight for every batch size; "sum" is as printed, over the batch.
    """
    _check_reduction("mi_loss", reduction)
    squares = _own_errors("mi_loss", z, g, y, E_W, E_H).square()                    # Eq. (6), the summands
    return squares.mean() if reduction == "mean" else squares.sum()


def clip_loss(logits, y):
    """L_CLIP = -1/N sum_x sum_k y_{x,k} log p_soft(y = k | x), below Eq. (7); logits are <z, g_k> / lam, (N, K).

    Paper vs. code: the logarithm is missing in print. The gradients of Sec. 4.3 are those of this cross-entropy, but
    for a factor 1 / (N lambda), and p_k in place of p_k' in the repulsion term of the text gradient.
    """
    _check("clip_loss", logits, y)
    return F.cross_entropy(logits, y)


def npt_loss(logits, z, g, y, *, w1=0.3, w2=0.8, E_W=1.0, E_H=1.0, reduction="mean"):
    """L = L_CLIP + w1 L_LC + w2 L_MI, Eq. (7), from unit features; w = 0 switches a term off.

    Returns the loss and, for the log, {"l_clip", "l_lc", "l_mi"}: unweighted, detached, 0 where switched off.

    Open point: the paper asks for ||g_k||^2 <= E_W and ||z||^2 <= E_H and not how. CLIP's features have length 1
    (Sec. 3.1), so L_LC and L_MI see them times sqrt(E_W) and sqrt(E_H): met with equality. L_CLIP keeps the logits of
    the unit features, because a longer feature there would only be another lambda.
    """
    _check("npt_loss", z, y, g)
    if logits.shape != (len(z), g.shape[-2]):
        raise ValueError(f"npt_loss: wants logits (N, K) = {(len(z), g.shape[-2])} to fit z and g, "
                         f"got {tuple(logits.shape)}")
    if min(w1, w2) < 0 or min(E_W, E_H) <= 0:
        raise ValueError(f"npt_loss: wants w1, w2 >= 0 and E_W, E_H > 0; got w1={w1}, w2={w2}, E_W={E_W}, E_H={E_H}")
    g, z = math.sqrt(E_W) * g, math.sqrt(E_H) * z
    l_clip = clip_loss(logits, y)
    off = torch.zeros_like(l_clip)
    l_lc = lc_loss(g, E_W, reduction) if w1 else off
    l_mi = mi_loss(z, g, y, E_W, E_H, reduction) if w2 else off
    loss = l_clip + w1 * l_lc + w2 * l_mi                                           # Eq. (7)
    return loss, {"l_clip": l_clip.detach(), "l_lc": l_lc.detach(), "l_mi": l_mi.detach()}
