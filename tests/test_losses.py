"""losses.py against hand arithmetic, loops, closed forms and autograd; one test an equation."""
import math
import statistics

import pytest
import torch
import torch.nn.functional as F

import losses
from losses import (
    class_probabilities,
    classifier_collapse,
    clip_loss,
    collapses,
    delta_lcd,
    delta_mid,
    feature_collapse,
    lc_floor,
    lc_loss,
    lc_parts,
    lcd_rms,
    mi_loss,
    npt_loss,
    prototype_collapse,
    similarities,
    simplex_etf,
)

SQUARE = torch.tensor([[1., 0], [0, 1], [-1, 0], [0, -1]])     # sums to zero, yet is no simplex ETF


def polygon(K):
    angles = 2 * math.pi * torch.arange(K) / K
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def harmonic(K, d):
    """K vectors made of d / 2 waves, which are orthogonal: a tight frame that sums to zero."""
    steps = torch.arange(K, dtype=torch.float64)[:, None]
    waves = 2 * math.pi * steps * torch.arange(1, d // 2 + 1) / K
    return math.sqrt(2 / d) * torch.cat([waves.cos(), waves.sin()], dim=1)


def dot(a, b):
    return sum(x * y for x, y in zip(a.tolist(), b.tolist(), strict=True))


def units(*shape, seed=0):
    draw = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(draw, dim=-1)


def close(got, wanted, **kwargs):
    assert got.ndim == 0
    assert got.item() == pytest.approx(wanted, **{"rel": 1e-5, "abs": 1e-6, **kwargs})


def p_loop(z, g, lam):
    """Eq. (1) for one image, in Python numbers."""
    e = [math.exp(dot(z, g_k) / lam) for g_k in g]
    return [e_k / sum(e) for e_k in e]


# Eq. (1) ------------------------------------------------------------------------------------------

def test_eq1_by_hand():
    z, g = torch.tensor([[1., 0.], [0., 2.]]), torch.tensor([[1., 1.], [0., 0.], [3., 1.]])
    p = class_probabilities(z, g, lam=1 / math.log(2))          # exp(s / lam) = 2^s
    torch.testing.assert_close(p, torch.tensor([[2 / 11, 1 / 11, 8 / 11], [4 / 9, 1 / 9, 4 / 9]]))


def test_eq1_one_set_of_text_features_an_image():
    z, g = units(3, 4), units(3, 5, 4, seed=1)
    p = class_probabilities(z, g, 0.1)
    assert p.shape == (3, 5)
    for n in range(3):
        assert p[n].tolist() == pytest.approx(p_loop(z[n], g[n], 0.1))


def test_eq1_similarities_by_loops():
    z = units(3, 4)
    for g in (units(5, 4, seed=1), units(3, 5, 4, seed=1)):
        sets = g.expand(3, 5, 4)
        wanted = [[dot(z[n], sets[n, k]) for k in range(5)] for n in range(3)]
        torch.testing.assert_close(similarities(z, g), torch.tensor(wanted, dtype=torch.float64))


def test_eq1_a_part_that_all_texts_share_moves_no_prediction():
    z, g, shared = units(3, 4), units(5, 4, seed=1), units(4, seed=2)
    p = class_probabilities(z, g + 3 * shared, 0.1)
    for n in range(3):
        assert p[n].tolist() == pytest.approx(p_loop(z[n], g, 0.1))


# Definition 1, Eqs. (2), (3) ----------------------------------------------------------------------

@pytest.mark.parametrize("K, d", [(2, 1), (2, 2), (3, 2), (5, 4), (5, 5), (5, 9),
                                  (40, 39), (40, 64)])
def test_def1_eq3_lengths_and_angles(K, d):
    m = simplex_etf(K, d)
    assert m.shape == (K, d) and m.dtype == torch.float32
    for i in range(K):
        for j in range(K):
            assert dot(m[i], m[j]) == pytest.approx(K / (K - 1) * (i == j) - 1 / (K - 1), abs=1e-6)


def test_eq2_by_hand_and_the_same_each_time():
    wanted = math.sqrt(3 / 2) * torch.tensor([[2., -1, -1, 0], [-1, 2, -1, 0], [-1, -1, 2, 0]]) / 3
    torch.testing.assert_close(simplex_etf(3, 4), wanted)
    torch.testing.assert_close(simplex_etf(3, 3), wanted[:, :3])
    assert torch.equal(simplex_etf(6, 5), simplex_etf(6, 5))


@pytest.mark.parametrize("K, d", [(5, 3), (1, 4), (1000, 512)])
def test_def1_none_below_k_minus_1(K, d):
    with pytest.raises(ValueError, match="d >= K - 1"):
        simplex_etf(K, d)


# Sec. 3.2 -----------------------------------------------------------------------------------------

def collapsed(counts, shift=0.0):
    """n_k copies of each vertex of an ETF, moved by a common vector, mixed in order."""
    etf = simplex_etf(len(counts), len(counts) + 1).double()
    y = torch.tensor([k for k, n in enumerate(counts) for _ in range(n)]).flip(0)
    return (etf + shift)[y], etf, y


@pytest.mark.parametrize("counts", [(3, 3, 3, 3), (8, 4, 2, 1)], ids=["balanced", "imbalanced"])
@pytest.mark.parametrize("shift", [0.0, 2.5])
def test_sec32_all_three_are_zero_at_collapse(counts, shift):
    z, etf, y = collapsed(counts, shift)
    close(feature_collapse(z, y), 0)
    close(prototype_collapse(z, y), 0)
    close(classifier_collapse(z, 7 * etf, y), 0)                # w~_k is normalised


def test_sec32_feature_collapse_by_hand():
    z = torch.tensor([[1., 0], [0., 6.], [3., 0], [0., 8.], [0., 7.]])
    y = torch.tensor([0, 1, 0, 1, 1])
    # z_0 = (2, 0), z_1 = (0, 7); within: 1 and 2/3, half the sum
    # between: both at ||(1, -3.5)||^2 from (1, 3.5)
    close(feature_collapse(z, y), (1 + 2 / 3) / 2 / (1 + 3.5 ** 2))
    close(feature_collapse(10 * z + 3, y), (1 + 2 / 3) / 2 / (1 + 3.5 ** 2))


def test_sec32_prototype_collapse_by_hand():
    z = torch.cat([3 * SQUARE + 1, 5 * SQUARE + 1])     # prototypes: radius 4 around (1, 1)
    y = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])
    close(prototype_collapse(z, y), math.sqrt((8 * (1 / 3) ** 2 + 4 * (2 / 3) ** 2) / 12))


def test_sec32_z_G_is_the_mean_of_all_images_on_balanced_data():
    z, y = units(12, 5), torch.arange(12) % 3
    z_k = [sum(z[n] for n in range(12) if n % 3 == k) / 4 for k in range(3)]
    z_tilde = [(p - z.mean(0)) / (p - z.mean(0)).norm() for p in z_k]
    pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
    wanted = sum((dot(z_tilde[i], z_tilde[j]) + 1 / 2) ** 2 for i, j in pairs) / 6
    close(prototype_collapse(z, y), math.sqrt(wanted))


def test_sec32_classifier_collapse_by_hand():
    z, etf, y = collapsed((2, 1, 3), shift=1.0)
    close(classifier_collapse(z, -etf, y), 2)
    # ||m_0 - m_1||^2 = 2 + 2 / (K-1) = 3, for two of three
    close(classifier_collapse(z, etf[[1, 0, 2]], y), math.sqrt(2 * 3 / 3))
    g = etf + torch.tensor([0, 0, 0, 1.])           # shared: cosine 1 / sqrt(2) with each vertex
    close(classifier_collapse(z, g, y), math.sqrt(2 - math.sqrt(2)))


def test_sec32_every_class_needs_an_image():
    z = torch.ones(3, 2)

    def to_four(z, y):
        return classifier_collapse(z, torch.ones(4, 2), y)

    for measure in (feature_collapse, prototype_collapse, to_four):
        with pytest.raises(ValueError, match="needs an image"):
            measure(z, torch.tensor([0, 1, 3]))
        with pytest.raises(ValueError, match="needs an image"):
            measure(z, torch.tensor([0, 0, 0]))
        with pytest.raises(ValueError, match="wants"):
            measure(z, torch.tensor([0, 1]))
        with pytest.raises(ValueError, match="needs an image"):
            measure(z, torch.tensor([-1, 0, 1]))
    with pytest.raises(ValueError, match="classifier_collapse"):
        classifier_collapse(z, torch.ones(4, 2), torch.tensor([0, 1, 2]))


# the square of test_sec32_prototype_collapse_by_hand: within 1, between 4^2
RINGS, RINGS_Y = torch.cat([3 * SQUARE + 1, 5 * SQUARE + 1]), torch.tensor([0, 1, 2, 3] * 2)
RINGS_PROTOTYPES = math.sqrt((8 * (1 / 3) ** 2 + 4 * (2 / 3) ** 2) / 12)


def test_sec32_collapses_by_hand():
    got = collapses(RINGS, -SQUARE, RINGS_Y)
    assert list(got) == ["feature_collapse", "prototype_collapse", "classifier_collapse"]
    assert list(got.values()) == pytest.approx([1 / 16, RINGS_PROTOTYPES, 2], rel=1e-5)
    assert all(type(value) is float for value in got.values())


def test_sec32_collapses_averages_a_set_an_image_first():
    offsets = torch.tensor([1., -1, 5, -5, 2, -2, 7, -7])[:, None, None]        # their mean is 0
    got = collapses(RINGS, -SQUARE + offsets, RINGS_Y)
    assert list(got.values()) == pytest.approx([1 / 16, RINGS_PROTOTYPES, 2], rel=1e-5)


@pytest.mark.parametrize("K, y", [(4, [0, 1, 3]), (4, [0, 1, 2]), (3, [1, 1, 2]), (1, [0, 0, 0])],
                         ids=["gap", "last one missing", "first one missing", "K = 1"])
def test_sec32_collapses_are_nan_where_there_is_nothing_to_measure(K, y):
    for g in (units(K, 5), units(3, K, 5)):
        got = collapses(units(3, 5, seed=1), g, torch.tensor(y))
        assert len(got) == 3 and all(math.isnan(value) for value in got.values())


# Definitions 2 and 3 ------------------------------------------------------------------------------

@pytest.mark.parametrize("g, E_W, by_hand, rms_by_hand", [
    (torch.eye(4), 1.0, 1 / 3, 1 / 3),
    (torch.ones(4, 1), 1.0, 4 / 3, 4 / 3),
    (SQUARE, 1.0, 0, math.sqrt((8 * (1 / 3) ** 2 + 4 * (2 / 3) ** 2) / 12)),
    (2 * torch.eye(3), 4.0, 2, 2),                              # E_W mu = -2
    (torch.tensor([[2., 0], [1, 1]]), 3.0, 2 + 3, 2 + 3),       # K = 2: mu = -1
], ids=["orthogonal", "equal", "square", "E_W", "two"])
def test_def2_by_hand(g, E_W, by_hand, rms_by_hand):
    close(delta_lcd(g, E_W), by_hand)
    close(lcd_rms(g, E_W), rms_by_hand)


@pytest.mark.parametrize("E_W", [1.0, 2.5])
def test_def2_is_the_squared_length_of_the_sum(E_W):
    for seed in range(5):
        g = math.sqrt(E_W) * units(6, 4, seed=seed)
        closed_form = g.sum(0).square().sum().item() / (6 * 5)
        assert closed_form >= 0
        close(delta_lcd(g, E_W), closed_form)


@pytest.mark.parametrize("g, is_etf", [(simplex_etf(7, 9), True), (simplex_etf(3, 2), True),
                                       (SQUARE, False), (polygon(5), False)])
def test_def2_is_zero_for_any_centred_set_but_lcd_rms_only_at_the_etf(g, is_etf):
    close(delta_lcd(g), 0)
    assert (lcd_rms(g).item() < 1e-6) == is_etf
    assert lcd_rms(g).item() >= 0


def test_def2_is_what_all_texts_share():
    """Delta_LCD = K/(K-1) ||g_bar||^2, and Avg_k ||g_k - g_bar||^2 = 1 - (K-1)/K Delta_LCD."""
    for K in (2, 3, 7):
        rows = units(K, 4, seed=K).tolist()
        g_bar = [sum(column) / K for column in zip(*rows, strict=True)]
        shared = sum(x * x for x in g_bar)
        spread = sum(math.dist(row, g_bar) ** 2 for row in rows) / K
        delta = delta_lcd(torch.tensor(rows, dtype=torch.float64))
        close(delta, K / (K - 1) * shared)
        close(1 - (K - 1) / K * delta, spread)


def test_def2_leaves_the_rest_for_the_differences():
    """Avg ||g_k - gbar||^2 = 1 - (K-1)/K Delta_LCD, by loops."""
    g = units(5, 4)
    rows = g.tolist()
    mean = [sum(column) / 5 for column in zip(*rows, strict=True)]
    left = sum(sum((u - v) ** 2 for u, v in zip(row, mean, strict=True)) for row in rows) / 5
    close(delta_lcd(g), (1 - left) * 5 / 4)


def test_def2_one_set_an_image_is_averaged():
    g = units(3, 5, 4)
    for measure in (delta_lcd, lcd_rms):
        close(measure(g), sum(measure(g_n).item() for g_n in g) / 3)


def test_def3_by_hand():
    z, g = torch.tensor([[1., 2], [0, 1], [3, 0]]), torch.tensor([[1., 0], [2, 3]])
    close(delta_mid(z, g, torch.tensor([0, 1, 1]), E_W=4.0, E_H=9.0), (1 + 3 + 6) / 3 - 6)
    close(delta_mid(z, g, torch.tensor([0, 1, 1])), (1 + 3 + 6) / 3 - 1)


def test_def3_is_at_most_zero_and_zero_where_image_and_text_coincide():
    g, y = units(5, 4), torch.tensor([4, 0, 2, 2])
    assert -2 <= delta_mid(units(4, 4, seed=3), g, y).item() < 0
    close(delta_mid(g[y], g, y), 0)
    close(delta_mid(-g[y], g, y), -2)
    close(delta_mid(3 * g[y], 2 * g, y, E_W=4.0, E_H=9.0), 0)


def test_def3_one_set_of_text_features_an_image():
    z, g, y = units(3, 4), units(3, 5, 4, seed=1), torch.tensor([4, 0, 2])
    close(delta_mid(z, g, y), sum(dot(z[n], g[n, k]) - 1 for n, k in enumerate(y.tolist())) / 3)


# Eq. (5) ------------------------------------------------------------------------------------------

@pytest.mark.parametrize("g, by_hand", [
    (torch.eye(4), 12 * (0 + 1 / 3) ** 2),
    (torch.ones(4, 1), 12 * (1 + 1 / 3) ** 2),
    (SQUARE, 8 * (0 + 1 / 3) ** 2 + 4 * (-1 + 1 / 3) ** 2),     # Delta_LCD is 0 here
    (torch.tensor([[2., 0], [1, 1]]), 2 * (2 + 1) ** 2),
    (simplex_etf(6, 8), 0),
    (simplex_etf(6, 5), 0),
], ids=["orthogonal", "equal", "square", "two", "etf", "etf_d=K-1"])
def test_eq5_by_hand(g, by_hand):
    K = len(g)
    close(lc_loss(g, reduction="sum"), by_hand)
    close(lc_loss(g), by_hand / (K * (K - 1)))                  # the default is the mean over pairs
    close(lc_loss(g, reduction="mean"), lcd_rms(g).item() ** 2)


def loop_eq5(g, E_W):
    K = len(g)
    return sum((dot(g[i], g[j]) + E_W / (K - 1)) ** 2 for i in range(K) for j in range(K) if i != j)


def test_eq5_equals_the_printed_sum():
    g = math.sqrt(2.5) * units(6, 4)
    close(lc_loss(g, 2.5, "sum"), loop_eq5(g, 2.5))
    close(lc_loss(g, 2.5), loop_eq5(g, 2.5) / 30)


def test_eq5_one_set_an_image_is_averaged():
    g = units(3, 5, 4)
    close(lc_loss(g, reduction="sum"), sum(loop_eq5(g_n, 1) for g_n in g) / 3)
    close(lc_loss(g), sum(loop_eq5(g_n, 1) for g_n in g) / 3 / 20)
    close(lc_loss(g[:1].expand(7, 5, 4)), lc_loss(g[0]).item())


@pytest.mark.parametrize("g, E_W, shared, unequal", [
    (torch.eye(4), 1.0, (1 / 3) ** 2, 0),
    (torch.ones(4, 1), 1.0, (4 / 3) ** 2, 0),
    (SQUARE, 1.0, 0, (8 * (1 / 3) ** 2 + 4 * (2 / 3) ** 2) / 12),   # cosines 0 and -1, mean -1/3
    (simplex_etf(6, 8), 1.0, 0, 0),
    (torch.eye(3)[[0, 1, 0]], 1.0, (1 / 3 + 1 / 2) ** 2, (1 + 1 + 4) / 9 / 3),  # cosines 0, 0, 1
    (torch.tensor([[2., 0], [1, 1]]), 3.0, (2 + 3) ** 2, 0),        # K = 2 has one angle
], ids=["orthogonal", "equal", "square", "etf", "two equal", "E_W"])
def test_eq5_parts_by_hand(g, E_W, shared, unequal):
    got = lc_parts(g, E_W)
    close(got[0], shared)
    close(got[1], unequal)
    close(lc_loss(g, E_W), shared + unequal)


@pytest.mark.parametrize("shape", [(6, 4), (3, 5, 4)])
def test_eq5_parts_by_loops_add_up_to_the_mean(shape):
    g = math.sqrt(2.5) * units(*shape)
    K, shared, unequal = shape[-2], [], []
    for g_n in g.reshape(-1, K, 4):
        cosines = [dot(g_n[i], g_n[j]) for i in range(K) for j in range(K) if i != j]
        shared.append((statistics.fmean(cosines) + 2.5 / (K - 1)) ** 2)
        unequal.append(statistics.pvariance(cosines))
    got = lc_parts(g, 2.5)
    close(got[0], statistics.fmean(shared))
    close(got[1], statistics.fmean(unequal))
    close(lc_loss(g, 2.5), statistics.fmean(shared) + statistics.fmean(unequal))


def test_eq5_parts_are_never_negative():
    """Equal angles in float32, where a difference of two squares would fall below 0 by rounding."""
    for seed in range(50):
        rotation = torch.linalg.qr(units(8, 8, seed=seed)).Q.float()
        for g in (rotation, simplex_etf(5, 8) @ rotation):
            shared, unequal = lc_parts(g)
            assert shared.item() >= 0 and 0 <= unequal.item() < 1e-12


def test_eq5_floor_for_imagenet():
    assert lc_floor(1000, 512, reduction="sum") == pytest.approx(952.124, abs=1e-3)
    assert lc_floor(1000, 512) == pytest.approx(952.124 / 999_000)
    assert lc_floor(4, 2, E_W=3.0, reduction="sum") == pytest.approx(9 * 16 * (1 / 2 - 1 / 3))
    assert lc_floor(513, 512) == 0 and lc_floor(514, 512) > 0 and lc_floor(3, 512) == 0


@pytest.mark.parametrize("g", [
    SQUARE, polygon(5), torch.cat([torch.eye(3), -torch.eye(3)]), harmonic(1000, 512),
], ids=["square", "pentagon", "octahedron", "ImageNet"])
def test_eq5_tight_frames_that_sum_to_zero_reach_the_floor(g):
    close(lc_loss(g, reduction="sum"), lc_floor(*g.shape, reduction="sum"))
    close(lc_loss(2 * g, 4.0), lc_floor(*g.shape, E_W=4.0))
    assert lc_floor(*g.shape) > 0


def test_eq5_descent_ends_at_the_floor():
    free = units(7, 3).requires_grad_()
    optimizer = torch.optim.LBFGS([free], max_iter=200, line_search_fn="strong_wolfe")
    seen = []

    def step():
        optimizer.zero_grad()
        loss = lc_loss(F.normalize(free, dim=1))
        loss.backward()
        seen.append(loss.item())
        return loss

    optimizer.step(step)
    assert min(seen) == pytest.approx(lc_floor(7, 3), rel=1e-4)
    assert min(seen) >= lc_floor(7, 3) * (1 - 1e-9) and seen[0] > 1.5 * lc_floor(7, 3)


# Eq. (6) ------------------------------------------------------------------------------------------

def test_eq6_by_hand():
    z, g = torch.tensor([[1., 2], [0, 1], [3, 0]]), torch.tensor([[1., 0], [2, 3]])
    y = torch.tensor([0, 1, 1])                                 # own similarities 1, 3, 6
    close(mi_loss(z, g, y, reduction="sum"), 0 + 4 + 25)
    close(mi_loss(z, g, y), 29 / 3)                         # the default is the mean over images
    close(mi_loss(z, g, y, E_W=4.0, E_H=9.0, reduction="sum"), 25 + 9 + 0)


def test_eq6_balanced_is_the_mean_over_classes():
    z, g = torch.tensor([[1., 2], [0, 1], [3, 0]]), torch.tensor([[1., 0], [2, 3]])
    y = torch.tensor([0, 1, 1])                 # squares 0 | 4, 25: class means 0 and 14.5
    weights = losses.balancing_weights(torch.tensor([1, 2]))
    assert weights.tolist() == [1.5, 0.75]
    close(mi_loss(z, g, y, weights=weights), 14.5 / 2)
    logits = z @ g.T
    _, terms = losses.npt_loss(logits, z, g, y, w1=0, w2=2.0, mi_weights=weights)
    close(terms["l_mi"], 14.5 / 2)


def test_logit_adjustment_by_hand():
    prior = losses.log_prior(torch.tensor([6, 3, 1]))
    assert prior.tolist() == pytest.approx([math.log(.6), math.log(.3), math.log(.1)])
    # cross-entropy with it: exp(l_k) weighs n_k; all logits alike leave the class frequencies
    for k, share in enumerate((.6, .3, .1)):
        close(clip_loss(torch.zeros(1, 3) + prior, torch.tensor([k])), -math.log(share))


def test_eq6_is_zero_where_image_and_text_coincide():
    g, y = units(5, 4), torch.tensor([4, 0, 2, 2])
    close(mi_loss(g[y], g, y), 0)
    close(mi_loss(3 * g[y], 2 * g, y, 4.0, 9.0), 0)


def test_eq6_one_set_of_text_features_an_image():
    z, g, y = units(3, 4), units(3, 5, 4, seed=1), torch.tensor([4, 0, 2])
    by_loop = sum((dot(z[n], g[n, k]) - 1) ** 2 for n, k in enumerate(y.tolist()))
    close(mi_loss(z, g, y, reduction="sum"), by_loop)
    close(mi_loss(z, g, y), by_loop / 3)


# Eq. (7) ------------------------------------------------------------------------------------------

def test_eq7_l_clip_has_the_logarithm():
    z, g, y, lam = units(3, 4), units(5, 4, seed=1), torch.tensor([4, 0, 2]), 0.3
    p_own = [p_loop(z[n], g, lam)[k] for n, k in enumerate(y.tolist())]
    close(clip_loss(z @ g.T / lam, y), -sum(math.log(p) for p in p_own) / 3)
    close(clip_loss(torch.zeros(2, 8), torch.tensor([3, 7])), math.log(8))


# unit features; L_CLIP = (ln 2 + ln 5/3) / 2; every pair at cosine 0; own similarities 0.6 and 1
LOGITS = torch.tensor([[math.log(2), 0, 0], [0, 0, math.log(3)]])
Z, G, Y = torch.tensor([[0.6, 0.8, 0], [0, 0, 1.]]), torch.eye(3), torch.tensor([0, 2])
L_CLIP = (math.log(2) + math.log(5 / 3)) / 2


def test_eq7_by_hand_with_the_weights_of_the_paper():
    loss, terms = npt_loss(LOGITS, Z, G, Y)
    assert list(terms) == ["l_clip", "l_lc", "l_mi"]
    close(terms["l_clip"], L_CLIP)
    close(terms["l_lc"], (1 / 2) ** 2)
    close(terms["l_mi"], 0.4 ** 2 / 2)
    close(loss, L_CLIP + 0.3 * 0.25 + 0.8 * 0.08)


@pytest.mark.parametrize("reduction, l_lc, l_mi", [
    ("mean", 4, (3.6 - 6) ** 2 / 2), ("sum", 24, (3.6 - 6) ** 2),
])
def test_eq7_lengths_weights_and_reduction(reduction, l_lc, l_mi):
    loss, terms = npt_loss(LOGITS, Z, G, Y, w1=2.0, w2=0.5, E_W=4.0, E_H=9.0, reduction=reduction)
    close(terms["l_clip"], L_CLIP)                          # the lengths do not touch the logits
    close(terms["l_lc"], l_lc)                                  # (0 + 4 / 2)^2
    close(terms["l_mi"], l_mi)
    close(loss, L_CLIP + 2 * l_lc + 0.5 * l_mi)


def test_eq7_lengths_are_met_at_the_ideal():
    etf, y = simplex_etf(4, 6), torch.tensor([3, 1])
    _, terms = npt_loss(etf[y] @ etf.T, etf[y], etf, y, E_W=2.0, E_H=5.0)
    close(terms["l_lc"], 0)
    close(terms["l_mi"], 0)


def test_eq7_weight_zero_switches_a_term_off(monkeypatch):
    loss, terms = npt_loss(LOGITS, Z, G, Y, w1=0, w2=2)
    close(loss, L_CLIP + 2 * 0.08)
    close(terms["l_lc"], 0)
    loss, terms = npt_loss(LOGITS, Z, G, Y, w1=2, w2=0)
    close(loss, L_CLIP + 2 * 0.25)
    close(terms["l_mi"], 0)
    monkeypatch.setattr(losses, "lc_loss", None)                # not computed, then multiplied by 0
    monkeypatch.setattr(losses, "mi_loss", None)
    close(npt_loss(LOGITS, Z, G, Y, w1=0, w2=0)[0], L_CLIP)


def test_eq7_one_set_of_text_features_an_image():
    z, g, y = units(3, 4), units(3, 5, 4, seed=1), torch.tensor([4, 0, 2])
    loss, terms = npt_loss(torch.zeros(3, 5), z, g, y)
    l_lc = sum(loop_eq5(g_n, 1) for g_n in g) / 60
    l_mi = sum((dot(z[n], g[n, k]) - 1) ** 2 for n, k in enumerate(y.tolist())) / 3
    close(loss, math.log(5) + 0.3 * l_lc + 0.8 * l_mi)


@pytest.mark.parametrize("E_W, E_H", [(1.0, 4.0), (4.0, 1.0), (2.5, 0.3)])
def test_eq7_lengths_are_no_new_freedom(E_W, E_H):
    """E_W and E_H multiply w_1 by E_W^2 and w_2 by E_W E_H."""
    z, g, y = units(3, 4), units(5, 4, seed=1), torch.tensor([4, 0, 2])
    loss, _ = npt_loss(torch.zeros(3, 5), z, g, y, E_W=E_W, E_H=E_H)
    l_mi = sum((dot(z[n], g[k]) - 1) ** 2 for n, k in enumerate(y.tolist())) / 3
    close(loss, math.log(5) + 0.3 * E_W ** 2 * loop_eq5(g, 1) / 20 + 0.8 * E_W * E_H * l_mi)


@pytest.mark.parametrize("w1, w2, g_grad, z_grad", [
    (2.0, 0.0, 2 * 4 * 0.5 / 6 * (1 - G), 0 * Z),           # factor 4 as below; mean over 6 pairs
    # only the first image is off, by -0.4; factor 2, mean over 2 images
    (0.0, 2.0, -0.8 * torch.tensor([[0.6, 0.8, 0], [0, 0, 0], [0, 0, 0]]),
     -0.8 * torch.tensor([[1., 0, 0], [0, 0, 0]])),
])
def test_eq7_gradient_of_each_regularizer_by_hand(w1, w2, g_grad, z_grad):
    z, g = Z.clone().requires_grad_(), G.clone().requires_grad_()
    loss, terms = npt_loss(LOGITS, z, g, Y, w1=w1, w2=w2)       # fixed logits: none of L_CLIP
    assert not any(term.requires_grad for term in terms.values())
    loss.backward()
    torch.testing.assert_close(g.grad, g_grad)
    torch.testing.assert_close(torch.zeros_like(z) if z.grad is None else z.grad, z_grad)
    assert all(value.dtype == torch.float32 for value in (loss, *terms.values()))


# Sec. 4.3: the printed gradients, with the factors that autograd finds ----------------------------

def clip_setting():
    z, g = units(5, 4).requires_grad_(), units(3, 4, seed=1).requires_grad_()
    y, lam = torch.tensor([0, 2, 0, 1, 0]), 0.2
    clip_loss(z @ g.T / lam, y).backward()
    p = [p_loop(z_n, g, lam) for z_n in z]
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


def test_sec43_image_gradient_of_l_clip():
    z, g, y, lam, p = clip_setting()
    for n, k in enumerate(y):
        printed = (p[n][k] - 1) * g[k] + sum(p[n][j] * g[j] for j in range(3) if j != k)
        torch.testing.assert_close(z.grad[n], printed.detach() / (5 * lam))


@pytest.mark.parametrize("shape", [(5, 4), (6, 5, 4)])
def test_sec43_l_clip_never_pushes_on_the_shared_part(shape):
    """sum_k dL_CLIP/dg_k = 0 for free features: L_CLIP does not see what all texts share."""
    z, g = units(6, 4), units(*shape, seed=1).requires_grad_()
    clip_loss(similarities(z, g) / 0.2, torch.tensor([0, 0, 0, 1, 4, 2])).backward()
    assert g.grad.norm().item() > 0.1
    assert max(g.grad.sum(dim=-2).flatten().tolist(), key=abs) == pytest.approx(0, abs=1e-12)


def encoder(t):
    """A stand-in for G_l or G_v: not linear, any length."""
    return torch.tanh(t @ units(3, 4, seed=9))


def test_sec43_prompt_gradient_of_l_lc_has_factor_4():
    t = units(5, 3).requires_grad_()
    lc_loss(encoder(t), 1.5, "sum").backward()
    g = encoder(t.detach())
    for i in range(5):
        jacobian = torch.autograd.functional.jacobian(encoder, t.detach()[i])   # (4, 3)
        wanted = sum(4 * (dot(g[i], g[j]) + 1.5 / 4) * g[j] @ jacobian for j in range(5) if j != i)
        # 2 in print; the pairs (i, j) and (j, i) both hold t_i
        torch.testing.assert_close(t.grad[i], wanted)


def test_sec43_prompt_gradient_of_l_mi_has_factor_2():
    f, g = units(3, 3).requires_grad_(), units(5, 4, seed=1).requires_grad_()
    y = torch.tensor([4, 0, 2])                                 # each k once
    mi_loss(encoder(f), g, y, 2.0, 3.0, "sum").backward()
    g_grad, g = g.grad, g.detach()
    z = encoder(f.detach())
    for n, k in enumerate(y.tolist()):
        jacobian = torch.autograd.functional.jacobian(encoder, f.detach()[n])
        error = dot(z[n], g[k]) - math.sqrt(6)
        torch.testing.assert_close(f.grad[n], 2 * error * g[k] @ jacobian)
        torch.testing.assert_close(g_grad[k], 2 * error * z[n])


# Inputs -------------------------------------------------------------------------------------------

def test_losses_and_definitions_look_at_no_value():
    """Tensors on the meta device have no value: any look at one, a wait for the GPU, raises."""
    for g_shape in [(6, 4), (3, 6, 4)]:
        z = torch.empty(3, 4, device="meta", requires_grad=True)
        g = torch.empty(g_shape, device="meta")
        y = torch.empty(3, dtype=torch.int64, device="meta")
        loss, _ = npt_loss(class_probabilities(z, g, 0.01), z, g, y)
        loss.backward()
        assert delta_lcd(g).shape == lcd_rms(g).shape == delta_mid(z, g, y).shape == ()
        assert [part.shape for part in lc_parts(g)] == [(), ()]


def test_float32_is_enough_for_the_sum_over_imagenet():
    g = units(1000, 512)
    exact = lc_loss(g, reduction="sum").item()
    assert exact > lc_floor(1000, 512, reduction="sum")
    close(lc_loss(g.float(), reduction="sum"), exact, rel=1e-5)
    assert lc_loss(g.float()).dtype == torch.float32


z3, y3, g5 = torch.ones(3, 4), torch.zeros(3, dtype=torch.int64), torch.ones(5, 4)


@pytest.mark.parametrize("z, g, y", [
    (z3[0], g5, y3), (z3[:0], g5, y3[:0]), (z3, g5[0], y3), (z3, g5[:, :3], y3),
    (z3, g5.expand(2, 5, 4), y3), (z3, g5.expand(1, 5, 4), y3), (z3, g5.expand(3, 3, 5, 4), y3),
    (z3, g5, y3[:2]), (z3, g5, y3[:, None]), (z3, g5, y3.float()), (z3, g5, y3.int()),
], ids=["z 1-D", "no image", "g 1-D", "d differs", "g of 2 images", "g of 1 image", "g 4-D",
        "y short", "y 2-D", "y float", "y int32"])
def test_shapes_that_do_not_fit_are_refused(z, g, y):
    def npt_of_ones(z, g, y):
        return npt_loss(torch.ones(3, 5), z, g, y)

    for call in (mi_loss, delta_mid, npt_of_ones, collapses):
        with pytest.raises(ValueError, match="wants .*got"):
            call(z, g, y)


@pytest.mark.parametrize("call, match", [
    (lambda: lc_loss(torch.ones(1, 4)), "lc_loss.*K >= 2"),
    (lambda: lc_loss(torch.ones(4)), "lc_loss"),
    (lambda: lc_loss(torch.ones(0, 5, 4)), "lc_loss"),
    (lambda: delta_lcd(torch.ones(1, 4)), "delta_lcd"),
    (lambda: lcd_rms(torch.ones(2, 2, 5, 4)), "lcd_rms"),
    (lambda: lc_loss(g5, reduction="none"), "reduction.*'none'"),
    (lambda: mi_loss(z3, g5, y3, reduction="avg"), "reduction.*'avg'"),
    (lambda: lc_floor(5, 2, reduction="max"), "reduction.*'max'"),
    (lambda: lc_floor(1, 2), "K >= 2"),
    (lambda: clip_loss(torch.ones(3, 5), y3[:2]), "clip_loss"),
    (lambda: clip_loss(torch.ones(3, 5), torch.ones(3, 5)), "clip_loss"),
    (lambda: class_probabilities(z3, g5[:, :2], 0.01), "similarities: wants"),
    (lambda: similarities(z3, g5.expand(1, 5, 4)), "similarities"),
    (lambda: lc_parts(torch.ones(1, 4)), "lc_parts.*K >= 2"),
    (lambda: collapses(torch.eye(3), torch.eye(3)[:2], torch.arange(3)), r"wants g \(3, 3\)"),
    (lambda: npt_loss(torch.ones(3, 4), z3, g5, y3), r"got \(3, 4\), \(3, 4\) and \(5, 4\)"),
    (lambda: npt_loss(torch.ones(3, 5), z3, g5, y3, w1=-1), "w1=-1"),
    (lambda: npt_loss(torch.ones(3, 5), z3, g5, y3, w2=-1), "w2=-1"),
    (lambda: npt_loss(torch.ones(3, 5), z3, g5, y3, E_W=0), "E_W=0"),
    (lambda: npt_loss(torch.ones(3, 5), z3, g5, y3, E_H=-1), "E_H=-1"),
    (lambda: npt_loss(torch.ones(3, 5), z3, g5, y3, reduction="batch"), "reduction.*'batch'"),
])
def test_invalid_arguments_are_named(call, match):
    with pytest.raises(ValueError, match=match):
        call()
