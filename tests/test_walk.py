"""assets/walk.py against walk.md, and its numbers against plain loops in Python."""
import contextlib
import io
import itertools
import math
import re
import sys

import pytest
import torch

from assets import walk

TEXT = walk.PAGE.read_text(encoding="utf-8")
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]\d+)?")


@pytest.fixture(scope="module")
def walked():
    return walk.walk()


@pytest.fixture(scope="module")
def printed(walked):
    """What a station printed."""
    return lambda station: walked[0][walk.STATIONS.index(station)]


def found(pattern, text):
    """The numbers in the brackets of a pattern, once in a text."""
    return [float(word) for word in re.search(pattern, text).groups()]


def dot(a, b):
    return sum(x * y for x, y in zip(a.tolist(), b.tolist(), strict=True))


# The page -----------------------------------------------------------------------------------------

def test_the_page_is_what_the_walk_prints(walked):
    """Every word the same, every number but for 2 % or two of its last digit: machines differ."""
    for a, b in zip(walk.page(TEXT, walked[0]).splitlines(), TEXT.splitlines(), strict=True):
        assert NUMBER.sub("#", a).split() == NUMBER.sub("#", b).split(), (a, b)
        for x, y in zip(NUMBER.findall(a), NUMBER.findall(b), strict=True):
            limit = 2 * 0.1 ** len(y.partition(".")[2])
            if a.startswith("largest difference"):
                limit = 1e-3
            assert float(x) == pytest.approx(float(y), rel=0.02, abs=limit), (a, b)


def test_figures_in_sentences_stand_in_a_block_above_them():
    """But for three settings of the optimiser, which stand in train.py."""
    shown = {"0.00001", "0.0005", "0.9"}
    for part in re.split(r"(```.*?```)", TEXT, flags=re.S):
        decimals = set(re.findall(r"\d+\.\d+", re.sub(r"Secs?\. \d\.\d", "", part)))
        assert part.startswith("```") or decimals <= shown, decimals - shown
        shown |= decimals


def test_titles(walked):
    titles = re.findall(r"^## \d+\. (.*)$", TEXT, flags=re.M)
    assert titles == [station.__doc__ for station in walk.STATIONS]
    assert all(output and walk.code(station)
               for station, output in zip(walk.STATIONS, walked[0], strict=True))


def test_the_code_of_the_page_runs_as_it_stands(walked, monkeypatch):
    """From the first import on: no name comes from nowhere."""
    monkeypatch.chdir(walk.PAGE.parents[1])
    monkeypatch.setattr(sys, "path", sys.path[:])
    names = {}
    for block in re.findall(r"^```python\n(.*?)^```$", TEXT, flags=re.M | re.S):
        with contextlib.redirect_stdout(io.StringIO()):
            exec(block, names)
    assert names["loss_f"].item() == pytest.approx(walked[1]["loss"].item(), abs=1e-4)
    torch.testing.assert_close(names["P"]["ctx"], names["learned"]["ctx"], rtol=1e-3, atol=1e-5)


# The numbers --------------------------------------------------------------------------------------

def test_eq1_by_loops(walked, printed):
    s = walked[1]
    for n, k in enumerate(s["y"]):
        e = [math.exp(dot(s["z"][n], g_k) / s["lam"].item()) for g_k in s["g"]]
        shown, = found(rf"image {n + 1}: p of its own class ([\d.]+)", printed(walk.equation_1))
        assert shown == pytest.approx(e[k] / sum(e), abs=1e-4)
        row = printed(walk.image_features).splitlines()[2 + n].split()
        assert float(row[k]) == pytest.approx(dot(s["z"][n], s["g"][k]), abs=0.006)


def test_eq5_eq6_by_loops(walked, printed):
    s, z, g = (walked[1], *(walked[1][name] for name in "zg"))
    l_lc = sum((dot(a, b) + 1 / 11) ** 2 for a, b in itertools.permutations(g, 2))
    l_mi = sum((dot(z_n, g[k]) - 1) ** 2 for z_n, k in zip(z, s["y"], strict=True))
    for station, words, total, n in ((walk.equation_5, "132 pairs: sum {}, L_LC = mean {}", l_lc,
                                      132), (walk.equation_6, "sum {}, L_MI = mean {}", l_mi, 4)):
        shown = found(words.replace("{}", r"([\d.]+)"), printed(station))
        assert shown == pytest.approx([total, total / n], abs=1e-3)


def test_eq7_adds_up(printed):
    loss, l_clip, l_lc, l_mi = found(r"L ([\d.]+) = L_CLIP ([\d.]+) \+ 0.3 L_LC ([\d.]+) \+ "
                                     r"0.8 L_MI ([\d.]+)", printed(walk.equation_7))
    assert loss == pytest.approx(l_clip + 0.3 * l_lc + 0.8 * l_mi, abs=1e-3)
    before, after = found(r"L ([\d.]+) -> ([\d.]+):", printed(walk.after_the_step))
    assert before == loss > after


def test_the_step_by_hand(printed):
    pull, as_sum = found(r"(?s)ctx +[\d.]+ +[\d.]+ +([\d.]+).*132 times as long, at ctx ([\d.]+)",
                         printed(walk.gradients))
    assert as_sum == pytest.approx(132 * pull, abs=132 * 1e-4)
    p, lr, gradient, p_again, after = found(
        r"u_1\[0\]: (\S+) - (\S+) \((\S+) \+ 0.0005 (\S+)\) = (\S+)", printed(walk.one_step))
    assert p == p_again and lr == 0.0035
    assert after == pytest.approx(p - lr * (gradient + 0.0005 * p), abs=2e-6)
    assert "frozen tensors that changed: 0 of" in printed(walk.one_step)


def test_l_lc_rises_as_its_gradient_says(printed):
    """The two gradients' product, without the weight, and what came in the one step."""
    text = printed(walk.after_the_step)
    before, after = found(r"L_LC ([\d.]+) -> ([\d.]+)", text)
    along, moved = found(r"= ([+-][\d.]+), and it moved by ([+-][\d.]+)", text)
    assert moved == pytest.approx(after - before, abs=2e-4)
    assert along == pytest.approx(moved, rel=0.3)


def test_the_nearest_words(walked, printed):
    """Layer 1 stays at its words, as far from them as it moved; the distances by loops."""
    W, P = walked[1]["W"], walked[1]["P"]
    vectors = [v.tolist() for v in W["token_embedding.weight"] if v.any()]
    assert len(vectors) == 41
    for j, word in enumerate(("a", "photo")):
        moved, nearest, second = found(
            rf"layer 1, u_{j + 1}: moved by ([\d.]+); nearest: {word} ([\d.]+), \w+ ([\d.]+)",
            printed(walk.in_words))
        distances = sorted(math.dist(P["ctx"][j].tolist(), v) for v in vectors)
        assert (nearest, second) == pytest.approx(distances[:2], abs=1e-4)
        assert moved == pytest.approx(nearest, abs=1e-4)


def test_the_command(walked, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(walk, "walk", lambda: walked)
    monkeypatch.setattr(walk, "PAGE", tmp_path / "walk.md")
    walk.PAGE.write_text(re.sub(r"image 1: class.*", "stale", TEXT), encoding="utf-8")
    assert walk.main([]) == 0
    assert capsys.readouterr().out.startswith("1. Four pictures and twelve names\n")
    assert walk.main(["--page"]) == 0
    assert walk.PAGE.read_text(encoding="utf-8") == walk.page(TEXT, walked[0])
    assert walk.main(["--nothing"]) == 2
    assert capsys.readouterr().err.startswith("error: ")
