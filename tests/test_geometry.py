"""CLIP's features in a file: what geometry.py prints of them, what real_features.py trains."""
import itertools
import math

import numpy
import pytest
import torch
from small_runs import read, refused

from assets import geometry, real_features

Z = numpy.array([[2., 1, 0], [0, 3, 4], [.6, 0, .8], [2, 1, .5]])       # the last is taken for 0
G, Y = numpy.array([[1., 1, 0], [0, 1, 1], [5, 0, 5]]), numpy.array([0, 1, 2, 1])
GOOD = {"z": Z, "y": Y, "g": G}


def l_clip_and_cosines(z, y, g, lam):
    z, g = ([[v / math.hypot(*row) for v in row] for row in rows.tolist()] for rows in (z, g))
    S = [[sum(map(float.__mul__, a, b)) for b in g] for a in z]
    own = [row[k] for row, k in zip(S, y, strict=True)]
    others = [s for row, k in zip(S, y, strict=True) for j, s in enumerate(row) if j != k]
    pairs = [sum(map(float.__mul__, a, b)) for a, b in itertools.permutations(g, 2)]
    sums = [sum(math.exp((s - o) / lam) for s in row) for row, o in zip(S, own, strict=True)]
    return sum(map(math.log, sums)) / len(z), own, others, pairs


def test_geometry_of_a_file_by_loops(at):
    numpy.savez("f.npz", **GOOD, temperature=0.2)
    found = geometry.geometry(*geometry.read_features(at / "f.npz"))
    l_clip, own, others, pairs = l_clip_and_cosines(Z, Y, G, 0.2)
    expected = {"cosine, image and its own text": sum(own) / 4, "L_CLIP": l_clip,
                "cosine, image and other texts": sum(others) / 8, "mean over classes, %": 250 / 3,
                "Delta_LCD, Def. 2": sum(pairs) / 6 + 1 / 2, "Delta_MID, Def. 3": sum(own) / 4 - 1,
                "mean L_LC: unequal angles": numpy.var(pairs), "accuracy, %": 75,
                "0.3 L_LC, printed sum": 0.3 * sum((c + 1 / 2) ** 2 for c in pairs),
                "0.8 L_MI, printed sum over these images": 0.8 * sum((o - 1) ** 2 for o in own)}
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("change, reason", [
    ({"z": Z[:, :2]}, "expected z"), ({"y": Y + 1}, "below K"), ({"g": G * math.nan}, "finite"),
    ({"temperature": 3.0}, "temperature 3.0"), ({"y": numpy.array([None] * 4)}, "allow_pickle")])
def test_files_that_are_none_are_refused_in_one_line(at, change, reason):
    numpy.savez("f.npz", **{**GOOD, **change})
    assert reason in refused("f.npz", main=geometry.main)
    assert "no such file" in refused("none.npz", main=real_features.main)
    numpy.savez("f.npz", **GOOD, z_train=Z, y_train=Y)
    assert "16 training images of each" in refused("f.npz", main=real_features.main)


def test_shared_map_is_pulled_as_eq_7_says_by_finite_differences():
    learned = [torch.randn(size).double().requires_grad_() for size in ((3,), (3, 4), (4, 3))]
    o, A, B = (x.detach().numpy() for x in learned)

    def by_loops(o):
        l_clip, own, _, pairs = l_clip_and_cosines(Z, Y, G + o + G @ A @ B, 0.2)
        return (l_clip + 0.5 * sum((c + 1 / 2) ** 2 for c in pairs) / 6
                + 0.7 * sum((s - 1) ** 2 for s in own) / 4)

    z, g = torch.nn.functional.normalize(torch.tensor(Z)), torch.tensor(G)
    moved = real_features.moved(learned, g)
    real_features.objective(moved, z, torch.tensor(Y), 0.2, 0.5, 0.7).backward()
    slopes = [(by_loops(o + by) - by_loops(o - by)) / 2e-6 for by in 1e-6 * numpy.eye(3)]
    assert learned[0].grad.tolist() == pytest.approx(slopes, rel=1e-5)


def test_the_little_world_s_figures_come_out_again():
    world = geometry.geometry(*geometry.little_world())
    for row in read(geometry.CSV):
        assert float(row["world"]) == pytest.approx(world[row["what"]], rel=0.02, abs=0.005)
