"""assets/probe.py against loops: nearest class mean, the linear probe's minimum, its folds."""
import pytest
import torch

from assets import probe


def clouds(n, K=3, d=5):
    y = torch.arange(n) % K
    return torch.nn.functional.one_hot(y, d) * 0.4 + torch.rand(n, d, dtype=torch.float64), y


def test_nearest_mean_by_a_loop():
    (z, y), (tests, _) = clouds(20), clouds(50)
    means = [sum(z[i] for i in range(20) if y[i] == k) / (y == k).sum() for k in range(3)]
    nearest = [min(range(3), key=lambda k: sum((means[k] - one) ** 2)) for one in tests]
    assert probe.nearest_mean(z, y, 3, tests).tolist() == nearest


@pytest.mark.parametrize("C", [0.1, 100.0])
def test_the_linear_probe_is_where_its_slope_is_zero(C):
    """d/dW_k = W_k / C + sum_n (p_nk - [y_n = k]) z_n and d/db_k = sum_n (p_nk - [y_n = k])."""
    z, y = clouds(20)
    W, b = probe.linear_probe(z, y, 3, C)
    slope_W, slope_b = W / C, torch.zeros(3, dtype=torch.float64)
    for z_n, y_n in zip(z, y, strict=True):
        e = [torch.exp(W[k] @ z_n + b[k]).item() for k in range(3)]
        for k in range(3):
            slope_W[k] += (e[k] / sum(e) - float(y_n == k)) * z_n
            slope_b[k] += e[k] / sum(e) - float(y_n == k)
    assert max(slope_W.abs().max(), slope_b.abs().max()) < 1e-5 and W.abs().max() > 0.01


def test_strength_is_chosen_on_held_out_images_by_a_loop(monkeypatch):
    """In folds of the i-th image of each class; class 2 has one image, which is never held out."""
    y = torch.tensor([0, 0, 1, 0, 2, 1, 0, 0, 0])
    z = torch.nn.functional.one_hot(y, 5) + 0.4 * torch.rand(9, 5, dtype=torch.float64)
    losses = []
    for C in probe.STRENGTHS:
        loss = 0
        for out in ([0, 2, 8], [1, 5], [3], [6], [7]):
            kept = [i for i in range(9) if i not in out]
            W, b = probe.linear_probe(z[kept], y[kept], 3, C)
            loss -= sum((W @ z[i] + b).softmax(0)[y[i]].log().item() for i in out)
        losses.append(loss)
    sizes, fit = [], probe.linear_probe
    monkeypatch.setattr(probe, "linear_probe", lambda *a: sizes.append(len(a[0])) or fit(*a))
    assert probe.choose_strength(z, y, 3) == probe.STRENGTHS[losses.index(min(losses))]
    assert sizes == [n for n in (6, 7, 8, 8, 8) for _ in probe.STRENGTHS]
