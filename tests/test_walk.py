"""assets/walk.py against walk.md, and its numbers against plain loops in Python."""
import math
import re

import pytest

from assets import walk

NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]\d+)?")


@pytest.fixture(scope="module")
def walked():
    return walk.walk()


def printed(done, station):
    return dict(done)[station]


def found(pattern, text):
    """The numbers in the brackets of a pattern, once in a text."""
    return [float(word) for word in re.search(pattern, text).groups()]


def dot(a, b):
    return sum(x * y for x, y in zip(a.tolist(), b.tolist(), strict=True))


def test_the_page_is_what_the_walk_prints(walked):
    """Every word the same, every number but for 2 % or two of its last digit: machines differ."""
    now, page = walk.page(walked[0]), walk.PAGE.read_text(encoding="utf-8")
    for a, b in zip(now.splitlines(), page.splitlines(), strict=True):
        assert NUMBER.sub("#", a).split() == NUMBER.sub("#", b).split(), (a, b)
        for x, y in zip(NUMBER.findall(a), NUMBER.findall(b), strict=True):
            limit = 2 * 0.1 ** len(y.partition(".")[2])
            if a.startswith("largest difference"):
                limit = 1e-3
            assert float(x) == pytest.approx(float(y), rel=0.02, abs=limit), (a, b)


def test_lines_fit_into_100_columns_and_stations_are_short(walked):
    done = walked[0]
    assert all(len(line) <= 100 for line in walk.page(done).splitlines())
    for station, output in done:
        assert output and walk.code(station), station.__name__
        sentences = re.findall(r"[.?]\)?(?=\s|$)", station.__doc__.split("\n", 2)[2])
        assert 2 <= len(sentences) <= 7, station.__name__       # "Def. 2)" counts as one, too


def test_eq1_by_loops(walked):
    done, s = walked
    for n, k in enumerate(s.y):
        e = [math.exp(dot(s.z[n], g_k) / s.lam.item()) for g_k in s.g]
        shown, = found(rf"image {n + 1}: p of its own class ([\d.]+)",
                       printed(done, walk.equation_1))
        assert shown == pytest.approx(e[k] / sum(e), abs=1e-4)


def test_eq5_by_loops(walked):
    done, s = walked
    K, total = 12, 0
    for i in range(K):
        for j in range(K):
            if i != j:
                total += (dot(s.g[i], s.g[j]) + 1 / 11) ** 2
    shown = found(r"132 pairs: sum ([\d.]+), L_LC = mean ([\d.]+)", printed(done, walk.equation_5))
    assert shown == pytest.approx([total, total / 132], abs=1e-3)


def test_eq6_by_loops(walked):
    done, s = walked
    total = 0
    for n, k in enumerate(s.y):
        total += (dot(s.z[n], s.g[k]) - 1) ** 2
    shown = found(r"sum ([\d.]+), L_MI = mean ([\d.]+)", printed(done, walk.equation_6))
    assert shown == pytest.approx([total, total / 4], abs=1e-3)


def test_eq7_adds_up(walked):
    done, _ = walked
    loss, l_clip, l_lc, l_mi = found(r"L ([\d.]+) = L_CLIP ([\d.]+) \+ 0.3 L_LC ([\d.]+) \+ "
                                     r"0.8 L_MI ([\d.]+)", printed(done, walk.equation_7))
    assert loss == pytest.approx(l_clip + 0.3 * l_lc + 0.8 * l_mi, abs=1e-3)
    before, after = found(r"L ([\d.]+) -> ([\d.]+):", printed(done, walk.after_the_step))
    assert before == loss and after != before


def test_the_step_by_hand(walked):
    p, lr, gradient, p_again, after = found(
        r"u_1\[0\]: (\S+) - (\S+) \((\S+) \+ 0.0005 (\S+)\) = (\S+)",
        printed(walked[0], walk.one_step))
    assert p == p_again and lr == 0.0035
    assert after == pytest.approx(p - lr * (gradient + 0.0005 * p), abs=2e-6)
    assert "frozen tensors that changed: 0 of" in printed(walked[0], walk.one_step)


def test_words_and_learned_positions_of_a_prompt(walked):
    text = printed(walked[0], walk.text_prompts)
    learned = re.findall(r"^position (\d+)  (\S+) +learned", text, flags=re.M)
    assert learned == [("1", "a"), ("2", "photo")]
    end, = re.findall(r"^position (\d+)  end", text, flags=re.M)
    assert text.split("by class: ")[1].split()[0] == end


def test_what_is_learned_adds_up(walked):
    """MaPLe's count from the sizes: J layers of u (2, w) and of F (w -> w_v)."""
    text = printed(walked[0], walk.learned_and_frozen)
    shapes = [re.findall(r"\d+", shape) for shape in re.findall(r"\(([\d, ]+)\)", text)]
    total = sum(math.prod(map(int, shape)) for shape in shapes)
    said = re.search(r"(\d+) tensors, ([\d,]+) numbers, J = (\d+)", text)
    w, w_v, J = int(shapes[0][1]), int(shapes[1][0]), int(said[3])
    assert len(shapes) == int(said[1]) == 3 * J
    assert total == int(said[2].replace(",", "")) == J * (2 * w + w * w_v + w_v)


def test_the_fast_form_is_the_same(walked):
    lines = re.findall(r"largest difference, (\w+): +(\S+)", printed(walked[0], walk.fast_form))
    assert [name for name, _ in lines] == ["z", "g", "L", "gradients", "learned"]
    assert all(float(value) < 1e-3 for _, value in lines)


def test_the_command(walked, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(walk, "walk", lambda: walked)
    monkeypatch.setattr(walk, "PAGE", tmp_path / "walk.md")
    assert walk.main([]) == 0
    assert capsys.readouterr().out.startswith("1. Four pictures and twelve names\n")
    assert walk.main(["--page"]) == 0
    assert walk.PAGE.read_text(encoding="utf-8") == walk.page(walked[0])
    assert walk.main(["--nothing"]) == 2
    assert capsys.readouterr().err.startswith("error: ")
