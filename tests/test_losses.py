"""losses.py against hand arithmetic, loops, closed forms and autograd, in the paper's order.

Each test is one statement of the paper or of losses.py; what is refused stands at the end. The
loops of Eqs. (1), (5)-(7) are those of textbook.py, one image and one pair of classes at a time.
"""
import math
import statistics

import pytest
import textbook
import torch
import torch.nn.functional as F

import losses

SQUARE = torch.tensor([[1., 0], [0, 1], [-1, 0], [0, -1]])     # sums to zero, yet is no simplex ETF
SQUARE_RMS = math.sqrt((8 * (0 + 1 / 3) ** 2 + 4 * (-1 + 1 / 3) ** 2) / 12)    # cosines 0 and -1


def units(*shape, seed=0):
    """Random unit vectors, float64."""
    draw = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(draw, dim=-1)


def dot(a, b):
    return sum(x * y for x, y in zip(a.tolist(), b.tolist(), strict=True))


def pairs(K):
    return [(i, j) for i in range(K) for j in range(K) if i != j]


def close(got, wanted, **kwargs):
    assert got.ndim == 0
    assert got.item() == pytest.approx(wanted, **{"rel": 1e-5, "abs": 1e-6, **kwargs})


# three images, five classes: one set of texts for all, and one for each image as CoCoOp has
Z3, Y3 = units(3, 4), torch.tensor([4, 0, 2])
TEXTS = [units(5, 4, seed=1), units(3, 5, 4, seed=1)]
both_forms = pytest.mark.parametrize("g", TEXTS, ids=["one set", "a set an image"])


# Eq. (1) ------------------------------------------------------------------------------------------

def test_eq1_by_hand():
    z, g = torch.tensor([[1., 0.], [0., 2.]]), torch.tensor([[1., 1.], [0., 0.], [3., 1.]])
    p = losses.class_probabilities(z, g, lam=1 / math.log(2))          # exp(s / lam) = 2^s
    torch.testing.assert_close(p, torch.tensor([[2 / 11, 1 / 11, 8 / 11], [4 / 9, 1 / 9, 4 / 9]]))


@both_forms
def test_eq1_by_loops(g):
    s, p = losses.similarities(Z3, g), losses.class_probabilities(Z3, g, 0.1)
    assert s.shape == p.shape == (3, 5)
    for n, own in enumerate(g.expand(3, 5, 4)):
        assert s[n].tolist() == pytest.approx([dot(Z3[n], g_k) for g_k in own])
        assert p[n].tolist() == pytest.approx(textbook.p_soft(Z3[n], own, 0.1).tolist())


def test_eq1_a_part_that_all_texts_share_moves_no_prediction():
    p = losses.class_probabilities(Z3, TEXTS[0] + 3 * units(4, seed=2), 0.1)
    for n in range(3):
        assert p[n].tolist() == pytest.approx(textbook.p_soft(Z3[n], TEXTS[0], 0.1).tolist())


# Definition 1, Eqs. (2), (3) ----------------------------------------------------------------------

@pytest.mark.parametrize("K, d", [(2, 1), (2, 2), (3, 2), (5, 4), (5, 5), (5, 9),
                                  (40, 39), (40, 64)])
def test_def1_eq3_lengths_and_angles(K, d):
    m = losses.simplex_etf(K, d)
    assert m.shape == (K, d) and m.dtype == torch.float32
    for i in range(K):
        for j in range(K):
            assert dot(m[i], m[j]) == pytest.approx(K / (K - 1) * (i == j) - 1 / (K - 1), abs=1e-6)


def test_eq2_by_hand_and_the_same_each_time():
    wanted = math.sqrt(3 / 2) * torch.tensor([[2., -1, -1, 0], [-1, 2, -1, 0], [-1, -1, 2, 0]]) / 3
    torch.testing.assert_close(losses.simplex_etf(3, 4), wanted)
    torch.testing.assert_close(losses.simplex_etf(3, 3), wanted[:, :3])
    assert torch.equal(losses.simplex_etf(6, 5), losses.simplex_etf(6, 5))


# Sec. 3.2 -----------------------------------------------------------------------------------------

def collapsed(counts, shift=0.0):
    """n_k copies of each vertex of an ETF, moved by a common vector, mixed in order."""
    etf = losses.simplex_etf(len(counts), len(counts) + 1).double()
    y = torch.tensor([k for k, n in enumerate(counts) for _ in range(n)]).flip(0)
    return (etf + shift)[y], etf, y


@pytest.mark.parametrize("counts", [(3, 3, 3, 3), (8, 4, 2, 1)], ids=["balanced", "imbalanced"])
@pytest.mark.parametrize("shift", [0.0, 2.5])
def test_sec32_all_three_are_zero_at_collapse(counts, shift):
    z, etf, y = collapsed(counts, shift)
    close(losses.feature_collapse(z, y), 0)
    close(losses.prototype_collapse(z, y), 0)
    close(losses.classifier_collapse(z, 7 * etf, y), 0)                # w~_k is normalised


def test_sec32_feature_collapse_by_hand():
    z = torch.tensor([[1., 0], [0., 6.], [3., 0], [0., 8.], [0., 7.]])
    y = torch.tensor([0, 1, 0, 1, 1])
    # z_0 = (2, 0), z_1 = (0, 7); within: 1 and 2/3, half the sum
    # between: both at ||(1, -3.5)||^2 from (1, 3.5)
    close(losses.feature_collapse(z, y), (1 + 2 / 3) / 2 / (1 + 3.5 ** 2))
    close(losses.feature_collapse(10 * z + 3, y), (1 + 2 / 3) / 2 / (1 + 3.5 ** 2))


# prototypes: a square of radius 4 around (1, 1); each image at distance 1 from its own
RINGS, RINGS_Y = torch.cat([3 * SQUARE + 1, 5 * SQUARE + 1]), torch.tensor([0, 1, 2, 3] * 2)


def test_sec32_prototype_collapse_by_hand():
    close(losses.prototype_collapse(RINGS, RINGS_Y), SQUARE_RMS)


def test_sec32_classifier_collapse_by_hand():
    z, etf, y = collapsed((2, 1, 3), shift=1.0)
    close(losses.classifier_collapse(z, -etf, y), 2)
    # ||m_0 - m_1||^2 = 2 + 2 / (K-1) = 3, for two of three
    close(losses.classifier_collapse(z, etf[[1, 0, 2]], y), math.sqrt(2 * 3 / 3))
    g = etf + torch.tensor([0, 0, 0, 1.])           # shared: cosine 1 / sqrt(2) with each vertex
    close(losses.classifier_collapse(z, g, y), math.sqrt(2 - math.sqrt(2)))


def test_sec32_collapses_are_the_three_and_average_a_set_an_image_first():
    offsets = torch.tensor([1., -1, 5, -5, 2, -2, 7, -7])[:, None, None]        # their mean is 0
    for g in (-SQUARE, -SQUARE + offsets):
        got = losses.collapses(RINGS, g, RINGS_Y)
        assert list(got) == ["feature_collapse", "prototype_collapse", "classifier_collapse"]
        assert list(got.values()) == pytest.approx([1 / 4 ** 2, SQUARE_RMS, 2], rel=1e-5)
        assert all(type(value) is float for value in got.values())


@pytest.mark.parametrize("K, y", [(4, [0, 1, 3]), (4, [0, 1, 2]), (3, [1, 1, 2]), (1, [0, 0, 0])],
                         ids=["gap", "last one missing", "first one missing", "K = 1"])
def test_sec32_collapses_are_nan_where_there_is_nothing_to_measure(K, y):
    for g in (units(K, 4), units(3, K, 4)):
        assert all(math.isnan(value) for value in losses.collapses(Z3, g, torch.tensor(y)).values())


# Definition 2 -------------------------------------------------------------------------------------

@pytest.mark.parametrize("g, E_W, delta, rms", [
    (torch.eye(4), 1.0, 1 / 3, 1 / 3),
    (torch.ones(4, 1), 1.0, 4 / 3, 4 / 3),
    (SQUARE, 1.0, 0, SQUARE_RMS),
    (losses.simplex_etf(7, 9), 1.0, 0, 0),
    (2 * torch.eye(3), 4.0, 2, 2),                              # E_W mu = -2
    (torch.tensor([[2., 0], [1, 1]]), 3.0, 2 + 3, 2 + 3),       # K = 2: mu = -1
], ids=["orthogonal", "equal", "square", "etf", "E_W", "two"])
def test_def2_by_hand(g, E_W, delta, rms):
    """The square shows it: Delta_LCD is 0 for any set that sums to zero, lcd_rms only at an ETF."""
    close(losses.delta_lcd(g, E_W), delta)
    close(losses.lcd_rms(g, E_W), rms)


def test_def2_is_the_squared_length_of_the_sum():
    for K in (2, 3, 7):
        g = math.sqrt(2.5) * units(K, 4, seed=K)
        total = [sum(column) for column in g.T.tolist()]
        close(losses.delta_lcd(g, 2.5), sum(x * x for x in total) / (K * (K - 1)))


def test_def2_leaves_the_rest_for_the_differences():
    """Avg ||g_k - gbar||^2 = 1 - (K-1)/K Delta_LCD."""
    g = units(5, 4)
    g_bar = [statistics.fmean(column) for column in g.T.tolist()]
    left = statistics.fmean(math.dist(g_k, g_bar) ** 2 for g_k in g.tolist())
    close(1 - 4 / 5 * losses.delta_lcd(g), left)


def test_def2_one_set_an_image_is_averaged():
    for measure in (losses.delta_lcd, losses.lcd_rms):
        close(measure(TEXTS[1]), sum(measure(g_n).item() for g_n in TEXTS[1]) / 3)


# Definition 3 -------------------------------------------------------------------------------------

def test_def3_by_hand():
    z, g = torch.tensor([[1., 2], [0, 1], [3, 0]]), torch.tensor([[1., 0], [2, 3]])
    y = torch.tensor([0, 1, 1])                                 # own similarities 1, 3, 6
    close(losses.delta_mid(z, g, y), (1 + 3 + 6) / 3 - 1)
    close(losses.delta_mid(z, g, y, E_W=4.0, E_H=9.0), (1 + 3 + 6) / 3 - 6)


# Eq. (5) ------------------------------------------------------------------------------------------

@pytest.mark.parametrize("g, by_hand", [
    (torch.eye(4), 12 * (0 + 1 / 3) ** 2),
    (torch.ones(4, 1), 12 * (1 + 1 / 3) ** 2),
    (SQUARE, 8 * (0 + 1 / 3) ** 2 + 4 * (-1 + 1 / 3) ** 2),     # Delta_LCD is 0 here
    (torch.tensor([[2., 0], [1, 1]]), 2 * (2 + 1) ** 2),
    (losses.simplex_etf(6, 8), 0),
    (losses.simplex_etf(6, 5), 0),
], ids=["orthogonal", "equal", "square", "two", "etf", "etf_d=K-1"])
def test_eq5_by_hand(g, by_hand):
    K = len(g)
    close(losses.lc_loss(g, reduction="sum"), by_hand)
    close(losses.lc_loss(g), by_hand / (K * (K - 1)))           # the default is the mean over pairs


@both_forms
def test_eq5_equals_the_printed_sum(g):
    """A set an image: the mean over the images. 20 ordered pairs."""
    mean = statistics.fmean(textbook.L_LC(g_n, 2.5).item() for g_n in g.reshape(-1, 5, 4))
    close(losses.lc_loss(g, 2.5, "sum"), 20 * mean)
    close(losses.lc_loss(g, 2.5), mean)


@both_forms
def test_eq5_parts_by_loops_add_up_to_the_mean(g):
    shared, unequal = [], []
    for g_n in g.reshape(-1, 5, 4):
        cosines = [dot(g_n[i], g_n[j]) for i, j in pairs(5)]
        shared.append((statistics.fmean(cosines) + 2.5 / 4) ** 2)
        unequal.append(statistics.pvariance(cosines))
    got = losses.lc_parts(g, 2.5)
    close(got[0], statistics.fmean(shared))
    close(got[1], statistics.fmean(unequal))
    close(losses.lc_loss(g, 2.5), sum(got).item())


def test_eq5_parts_are_never_negative():
    """Equal angles in float32, where a difference of two squares would fall below 0 by rounding."""
    for seed in range(50):
        rotation = torch.linalg.qr(units(8, 8, seed=seed)).Q.float()
        for g in (rotation, losses.simplex_etf(5, 8) @ rotation):
            shared, unequal = losses.lc_parts(g)
            assert shared.item() >= 0 and 0 <= unequal.item() < 1e-12


def test_eq5_floor_for_imagenet():
    floor = losses.lc_floor
    assert floor(1000, 512, reduction="sum") == pytest.approx(952.124, abs=1e-3)
    assert floor(1000, 512) == pytest.approx(952.124 / 999_000)
    assert floor(4, 2, E_W=3.0, reduction="sum") == pytest.approx(9 * 16 * (1 / 2 - 1 / 3))
    assert floor(513, 512) == 0 and floor(514, 512) > 0 and floor(3, 512) == 0


def harmonic(K, d):
    """K vectors made of d / 2 waves, which are orthogonal: a tight frame that sums to zero."""
    steps = torch.arange(K, dtype=torch.float64)[:, None]
    waves = 2 * math.pi * steps * torch.arange(1, d // 2 + 1) / K
    return math.sqrt(2 / d) * torch.cat([waves.cos(), waves.sin()], dim=1)


@pytest.mark.parametrize("g", [
    SQUARE, harmonic(5, 2), torch.cat([torch.eye(3), -torch.eye(3)]), harmonic(1000, 512),
], ids=["square", "pentagon", "octahedron", "ImageNet"])
def test_eq5_tight_frames_that_sum_to_zero_reach_the_floor(g):
    close(losses.lc_loss(g, reduction="sum"), losses.lc_floor(*g.shape, reduction="sum"))
    close(losses.lc_loss(2 * g, 4.0), losses.lc_floor(*g.shape, E_W=4.0))
    assert losses.lc_floor(*g.shape) > 0


# Eq. (6) ------------------------------------------------------------------------------------------

def test_eq6_by_hand():
    z, g = torch.tensor([[1., 2], [0, 1], [3, 0]]), torch.tensor([[1., 0], [2, 3]])
    y = torch.tensor([0, 1, 1])                                 # own similarities 1, 3, 6
    close(losses.mi_loss(z, g, y, reduction="sum"), 0 + 4 + 25)
    close(losses.mi_loss(z, g, y), 29 / 3)                      # the default: the mean over images
    close(losses.mi_loss(z, g, y, E_W=4.0, E_H=9.0, reduction="sum"), 25 + 9 + 0)
    # balanced: the mean over the classes' means 0 and 29 / 2
    weights = losses.balancing_weights(torch.tensor([1, 2]))
    assert weights.tolist() == [1.5, 0.75]
    close(losses.mi_loss(z, g, y, weights=weights), (0 + 29 / 2) / 2)
    close(losses.npt_loss(z @ g.T, z, g, y, mi_weights=weights)[1]["l_mi"], 29 / 4)


@both_forms
def test_eq6_equals_the_printed_sum(g):
    mean = textbook.L_MI(Z3, g.expand(3, 5, 4), Y3).item()
    close(losses.mi_loss(Z3, g, Y3, reduction="sum"), 3 * mean)
    close(losses.mi_loss(Z3, g, Y3), mean)


# Eq. (7) ------------------------------------------------------------------------------------------

def test_eq7_l_clip_has_the_logarithm():
    p_own = [textbook.p_soft(Z3[n], TEXTS[0], 0.3)[k].item() for n, k in enumerate(Y3)]
    close(losses.clip_loss(Z3 @ TEXTS[0].T / 0.3, Y3), -sum(math.log(p) for p in p_own) / 3)
    close(losses.clip_loss(torch.zeros(2, 8), torch.tensor([3, 7])), math.log(8))


def test_logit_adjustment_by_hand():
    prior = losses.log_prior(torch.tensor([6, 3, 1]))
    assert prior.tolist() == pytest.approx([math.log(.6), math.log(.3), math.log(.1)])
    # all logits alike leave the class frequencies
    for k, share in enumerate((.6, .3, .1)):
        close(losses.clip_loss(torch.zeros(1, 3) + prior, torch.tensor([k])), -math.log(share))


# unit features; L_CLIP = (ln 2 + ln 5/3) / 2; every pair at cosine 0; own similarities 0.6 and 1
LOGITS = torch.tensor([[math.log(2), 0, 0], [0, 0, math.log(3)]])
Z, G, Y = torch.tensor([[0.6, 0.8, 0], [0, 0, 1.]]), torch.eye(3), torch.tensor([0, 2])
L_CLIP = (math.log(2) + math.log(5 / 3)) / 2


def test_eq7_by_hand_with_the_weights_of_the_paper():
    loss, terms = losses.npt_loss(LOGITS, Z, G, Y)
    assert list(terms) == ["l_clip", "l_lc", "l_mi"]
    close(terms["l_clip"], L_CLIP)
    close(terms["l_lc"], (1 / 2) ** 2)
    close(terms["l_mi"], 0.4 ** 2 / 2)
    close(loss, L_CLIP + 0.3 * 0.25 + 0.8 * 0.08)


@both_forms
@pytest.mark.parametrize("E_W, E_H, reduction, pairs, images", [
    (1.0, 1.0, "mean", 1, 1), (2.5, 0.3, "mean", 1, 1), (4.0, 9.0, "sum", 20, 3)])
def test_eq7_lengths_are_no_new_freedom(g, E_W, E_H, reduction, pairs, images):
    """E_W and E_H multiply w_1 by E_W^2 and w_2 by E_W E_H, and do not touch the logits."""
    logits = losses.similarities(Z3, g) / 0.3
    loss, terms = losses.npt_loss(logits, Z3, g, Y3, E_W=E_W, E_H=E_H, reduction=reduction)
    _, l_clip, l_lc, l_mi = (term.item() for term in textbook.L(Z3, g, Y3, 0.3))
    wanted = [l_clip, E_W ** 2 * pairs * l_lc, E_W * E_H * images * l_mi]
    assert [term.item() for term in terms.values()] == pytest.approx(wanted)
    close(loss, wanted[0] + 0.3 * wanted[1] + 0.8 * wanted[2])


def test_eq7_weight_zero_switches_a_term_off(monkeypatch):
    monkeypatch.setattr(losses, "lc_loss", None)                # not computed, then multiplied by 0
    loss, terms = losses.npt_loss(LOGITS, Z, G, Y, w1=0, w2=2)
    close(loss, L_CLIP + 2 * 0.08)
    close(terms["l_lc"], 0)
    monkeypatch.undo()
    monkeypatch.setattr(losses, "mi_loss", None)
    loss, terms = losses.npt_loss(LOGITS, Z, G, Y, w1=2, w2=0)
    close(loss, L_CLIP + 2 * 0.25)
    close(terms["l_mi"], 0)


@pytest.mark.parametrize("w1, w2, g_grad, z_grad", [
    (2.0, 0.0, 2 * 4 * 0.5 / 6 * (1 - G), 0 * Z),           # factor 4 as below; mean over 6 pairs
    # only the first image is off, by -0.4; factor 2, mean over 2 images
    (0.0, 2.0, -0.8 * torch.tensor([[0.6, 0.8, 0], [0, 0, 0], [0, 0, 0]]),
     -0.8 * torch.tensor([[1., 0, 0], [0, 0, 0]])),
])
def test_eq7_gradient_of_each_regularizer_by_hand(w1, w2, g_grad, z_grad):
    z, g = Z.clone().requires_grad_(), G.clone().requires_grad_()
    loss, terms = losses.npt_loss(LOGITS, z, g, Y, w1=w1, w2=w2)    # fixed logits: none of L_CLIP
    assert not any(term.requires_grad for term in terms.values())
    loss.backward()
    torch.testing.assert_close(g.grad, g_grad)
    torch.testing.assert_close(torch.zeros_like(z) if z.grad is None else z.grad, z_grad)


# Sec. 4.3: the printed gradients, with the factors that autograd finds ----------------------------

def clip_setting():
    z, g = units(5, 4).requires_grad_(), units(3, 4, seed=1).requires_grad_()
    y, lam = torch.tensor([0, 2, 0, 1, 0]), 0.2
    losses.clip_loss(z @ g.T / lam, y).backward()
    p = [textbook.p_soft(z_n, g, lam).tolist() for z_n in z]
    return z, g, y.tolist(), lam, p


def test_sec43_text_gradient_of_l_clip():
    z, g, y, lam, p = clip_setting()
    for k in range(3):
        cohesion = sum((p[n][k] - 1) * z[n] for n in range(5) if y[n] == k)
        repulsion = sum(p[n][k] * z[n] for n in range(5) if y[n] != k)          # p_k; p_k' in print
        torch.testing.assert_close(g.grad[k], (cohesion + repulsion).detach() / (5 * lam))


def test_remark_2_cohesion_and_repulsion_by_loop():
    _, _, y, _, p = clip_setting()
    cohesion, repulsion = losses.cohesion_repulsion(torch.tensor(p), torch.tensor(y))
    for k in range(3):
        by_loop = (sum(1 - p[n][k] for n in range(5) if y[n] == k),
                   sum(p[n][k] for n in range(5) if y[n] != k))
        assert (cohesion[k].item(), repulsion[k].item()) == pytest.approx(by_loop)
        balance = list(y).count(k) - sum(p[n][k] for n in range(5))
        assert (cohesion - repulsion)[k].item() == pytest.approx(balance)


@both_forms
def test_sec43_l_clip_never_pushes_on_the_shared_part(g):
    """sum_k dL_CLIP/dg_k = 0 for free features: L_CLIP does not see what all texts share."""
    g = g.clone().requires_grad_()
    losses.clip_loss(losses.similarities(Z3, g) / 0.2, Y3).backward()
    assert g.grad.norm().item() > 0.1
    assert max(g.grad.sum(dim=-2).flatten().tolist(), key=abs) == pytest.approx(0, abs=1e-12)


def encoder(t):
    """A stand-in for G_l or G_v: not linear, any length."""
    return torch.tanh(t @ units(3, 4, seed=9))


def test_sec43_prompt_gradient_of_l_lc_has_factor_4():
    t = units(5, 3).requires_grad_()
    losses.lc_loss(encoder(t), 1.5, "sum").backward()
    g = encoder(t.detach())
    for i in range(5):
        jacobian = torch.autograd.functional.jacobian(encoder, t.detach()[i])   # (4, 3)
        wanted = sum(4 * (dot(g[i], g[j]) + 1.5 / 4) * g[j] @ jacobian for j in range(5) if j != i)
        # 2 in print; the pairs (i, j) and (j, i) both hold t_i
        torch.testing.assert_close(t.grad[i], wanted)


# What tensors it takes, and what it refuses -------------------------------------------------------

@pytest.mark.parametrize("shape", [(6, 4), (3, 6, 4)])
def test_losses_and_definitions_look_at_no_value(shape):
    """Tensors on the meta device have no value: any look at one, a wait for the GPU, raises."""
    z, g = torch.empty(3, 4, device="meta", requires_grad=True), torch.empty(shape, device="meta")
    y = torch.empty(3, dtype=torch.int64, device="meta")
    loss, _ = losses.npt_loss(losses.class_probabilities(z, g, 0.01), z, g, y)
    loss.backward()
    scalars = losses.delta_lcd(g), losses.lcd_rms(g), losses.delta_mid(z, g, y), *losses.lc_parts(g)
    assert [scalar.shape for scalar in scalars] == [()] * 5


def test_float32_is_enough_for_the_sum_over_imagenet():
    g = units(1000, 512)
    exact = losses.lc_loss(g, reduction="sum").item()
    assert exact > losses.lc_floor(1000, 512, reduction="sum")
    close(losses.lc_loss(g.float(), reduction="sum"), exact, rel=1e-5)
    assert losses.lc_loss(g.float()).dtype == torch.float32


z3, y3, g5 = torch.ones(3, 4), torch.zeros(3, dtype=torch.int64), torch.ones(5, 4)


@pytest.mark.parametrize("z, g, y", [
    (z3[0], g5, y3), (z3[:0], g5, y3[:0]), (z3, g5[0], y3), (z3, g5[:, :3], y3),
    (z3, g5.expand(2, 5, 4), y3), (z3, g5.expand(1, 5, 4), y3), (z3, g5.expand(3, 3, 5, 4), y3),
    (z3, g5, y3[:2]), (z3, g5, y3[:, None]), (z3, g5, y3.float()), (z3, g5, y3.int()),
], ids=["z 1-D", "no image", "g 1-D", "d differs", "g of 2 images", "g of 1 image", "g 4-D",
        "y short", "y 2-D", "y float", "y int32"])
def test_shapes_that_do_not_fit_are_refused(z, g, y):
    def npt_of_ones(z, g, y):
        return losses.npt_loss(torch.ones(len(z), 5), z, g, y)

    for call in (losses.mi_loss, losses.delta_mid, npt_of_ones, losses.collapses):
        with pytest.raises(ValueError, match="wants .*got"):
            call(z, g, y)


@pytest.mark.parametrize("call, match", [
    (lambda: losses.simplex_etf(5, 3), "d >= K - 1"),
    (lambda: losses.simplex_etf(1, 4), "d >= K - 1"),
    (lambda: losses.feature_collapse(z3, torch.tensor([0, 1, 3])), "feature_collapse: every class"),
    (lambda: losses.feature_collapse(z3, torch.tensor([-1, 0, 1])), "needs an image"),
    (lambda: losses.prototype_collapse(z3, y3), "prototype_collapse: every class .* K >= 2"),
    (lambda: losses.classifier_collapse(z3, g5, torch.tensor([0, 1, 3])), "classifier_collapse: "),
    (lambda: losses.classifier_collapse(z3, g5, torch.tensor([0, 1, 2])), r"wants g \(3, 4\)"),
    (lambda: losses.lc_loss(torch.ones(1, 4)), "lc_loss.*K >= 2"),
    (lambda: losses.lc_loss(torch.ones(0, 5, 4)), "lc_loss"),
    (lambda: losses.delta_lcd(torch.ones(1, 4)), "delta_lcd"),
    (lambda: losses.lcd_rms(torch.ones(2, 2, 5, 4)), "lcd_rms"),
    (lambda: losses.lc_parts(torch.ones(1, 4)), "lc_parts.*K >= 2"),
    (lambda: losses.lc_loss(g5, reduction="none"), "lc_loss: reduction.*'none'"),
    (lambda: losses.mi_loss(z3, g5, y3, reduction="avg"), "mi_loss: reduction.*'avg'"),
    (lambda: losses.lc_floor(5, 2, reduction="max"), "lc_floor: reduction.*'max'"),
    (lambda: losses.lc_floor(1, 2), "K >= 2"),
    (lambda: losses.clip_loss(torch.ones(3, 5), y3[:2]), "clip_loss"),
    (lambda: losses.clip_loss(torch.ones(3, 5), torch.ones(3, 5)), "clip_loss"),
    (lambda: losses.class_probabilities(z3, g5[:, :2], 0.01), "similarities: wants"),
    (lambda: losses.npt_loss(torch.ones(3, 4), z3, g5, y3), r"got \(3, 4\), \(3, 4\) and \(5, 4\)"),
    (lambda: losses.npt_loss(torch.ones(3, 5), z3, g5, y3, w1=-1), "w1=-1"),
    (lambda: losses.npt_loss(torch.ones(3, 5), z3, g5, y3, w2=-1), "w2=-1"),
    (lambda: losses.npt_loss(torch.ones(3, 5), z3, g5, y3, E_W=0), "E_W=0"),
    (lambda: losses.npt_loss(torch.ones(3, 5), z3, g5, y3, E_H=-1), "E_H=-1"),
    (lambda: losses.npt_loss(torch.ones(3, 5), z3, g5, y3, reduction="n"), "reduction.*'n'"),
])
def test_invalid_arguments_are_named(call, match):
    with pytest.raises(ValueError, match=match):
        call()
