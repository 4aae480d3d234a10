"""assets/walk.py against walk.md, and its numbers against plain loops in Python."""
import itertools
import math
import re

import pytest

from assets import walk

TEXT = walk.PAGE.read_text(encoding="utf-8")
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]\d+)?")


@pytest.fixture(scope="module")
def walked():
    return walk.walk(TEXT)


@pytest.fixture(scope="module")
def printed(walked):
    return "".join(walked[0])


def found(pattern, text):
    """The numbers in the brackets of a pattern, # for a number, where it stands first in a text."""
    return [float(word) for word in re.search(pattern.replace("#", NUMBER.pattern), text).groups()]


def dot(a, b):
    return sum(x * y for x, y in zip(a.tolist(), b.tolist(), strict=True))


# The page -----------------------------------------------------------------------------------------

def test_the_page_is_what_the_walk_prints(walked):
    """Every word the same, every number but for 2 % or two of its last digit: machines differ."""
    assert walk.page(TEXT, ["shown\n"] * 15).count("```\n\n```\nshown\n```\n") == 15
    for a, b in zip(walk.page(TEXT, walked[0]).splitlines(), TEXT.splitlines(), strict=True):
        assert NUMBER.sub("#", a).split() == NUMBER.sub("#", b).split(), (a, b)
        for x, y in zip(NUMBER.findall(a), NUMBER.findall(b), strict=True):
            limit = 2 * 0.1 ** len(y.partition(".")[2])
            if a.startswith("largest difference"):
                limit = 1e-4
            assert float(x) == pytest.approx(float(y), rel=0.02, abs=limit), (a, b)


def test_figures_in_sentences_stand_in_a_block_above_them():
    """But for three settings of the optimiser, which stand in train.py."""
    shown = {"0.00001", "0.0005", "0.9"}
    for part in re.split(r"(```.*?```)", TEXT, flags=re.S):
        decimals = set(re.findall(r"\d+\.\d+", re.sub(r"Secs?\. \d\.\d", "", part)))
        assert part.startswith("```") or decimals <= shown, decimals - shown
        shown |= decimals


# The numbers --------------------------------------------------------------------------------------

def test_eq1_by_loops(walked, printed):
    s, rows = walked[1], printed.split("each of the 12 classes:\n")[1].splitlines()
    for n, k in enumerate(s["y"]):
        e = [math.exp(dot(s["z"][n], g_k) / s["lam"].item()) for g_k in s["g"]]
        shown, = found(rf"image {n + 1}: p of its own class (#)", printed)
        assert shown == pytest.approx(e[k] / sum(e), abs=1e-4)
        assert float(rows[n].split()[k]) == pytest.approx(dot(s["z"][n], s["g"][k]), abs=0.006)


def test_eq5_eq6_by_loops(walked, printed):
    y, z, g = (walked[1][name] for name in "yzg")
    l_lc = sum((dot(a, b) + 1 / 11) ** 2 for a, b in itertools.permutations(g, 2))
    l_mi = sum((dot(z_n, g[k]) - 1) ** 2 for z_n, k in zip(z, y, strict=True))
    assert found("132 pairs: sum (#), L_LC = mean (#)", printed) == pytest.approx(
        [l_lc, l_lc / 132], abs=1e-3)
    assert found("sum (#), L_MI = mean (#)", printed) == pytest.approx([l_mi, l_mi / 4], abs=1e-3)


@pytest.mark.parametrize("pattern, miss, limit", [
    (r"L (#) = L_CLIP (#) \+ 0.3 L_LC (#) \+ 0.8 L_MI (#)",
     lambda loss, l_clip, l_lc, l_mi: loss - (l_clip + 0.3 * l_lc + 0.8 * l_mi), 1e-3),
    (r"\nctx +# +# +(#)(?s:.*)132 times as long, at ctx (#)",
     lambda pull, as_sum: pull - as_sum / 132, 1e-4),
    (r"u_1\[0\]: (#) - 0.0035 \((#) \+ 0.0005 \1\) = (#)",
     lambda p, gradient, after: after - (p - 0.0035 * (gradient + 0.0005 * p)), 2e-6),
    (r"frozen tensors that changed: (#) of", lambda changed: changed, 0),
    (r"L (#) = L_CLIP(?s:.*)\nL \1 -> (#)", lambda before, after: max(0, after - before), 0),
    (r"L_LC (#) -> (#)(?s:.*), and it moved by \+(#)",
     lambda before, after, moved: moved - (after - before), 2e-4),
    (r"= \+(#), and it moved by \+(#)", lambda along, moved: along / moved - 1, 0.3),
], ids=["Eq. (7)", "sum", "step", "frozen", "falls", "L_LC rises", "as its gradient says"])
def test_what_is_printed_by_hand(printed, pattern, miss, limit):
    assert abs(miss(*found(pattern, printed))) <= limit


def test_the_nearest_words(walked, printed):
    """Layer 1 stays at its words, as far from them as it moved; the distances by loops."""
    W, P = walked[1]["W"], walked[1]["P"]
    vectors = [v.tolist() for v in W["token_embedding.weight"] if v.any()]
    assert len(vectors) == 41
    for j, word in enumerate(("a", "photo")):
        moved, nearest, second = found(
            rf"layer 1, u_{j + 1}: moved by (#); nearest: {word} (#), \w+ (#)", printed)
        distances = sorted(math.dist(P["ctx"][j].tolist(), v) for v in vectors)
        assert (nearest, second) == pytest.approx(distances[:2], abs=1e-4)
        assert moved == pytest.approx(nearest, abs=1e-4)


def test_the_command(walked, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(walk, "walk", lambda _: walked)
    monkeypatch.setattr(walk, "PAGE", tmp_path / "walk.md")
    walk.PAGE.write_text(re.sub(r"image 1: class.*", "stale", TEXT), encoding="utf-8")
    assert walk.main([]) == 0
    assert capsys.readouterr().out.startswith("1. Four pictures and twelve names\n")
    assert walk.main(["--page"]) == 0
    assert walk.PAGE.read_text(encoding="utf-8") == walk.page(TEXT, walked[0])
    assert walk.main(["--nothing"]) == 2
    assert capsys.readouterr().err.startswith("error: ")
