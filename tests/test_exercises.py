"""assets/exercises.py: right answers, slips and what it says of them, code that does not behave."""
import inspect
import itertools
import math
import re
from pathlib import Path

import pytest
import torch
from small_runs import call, done, refused

import data
import losses
from assets import exercises, solutions

PAGE = Path(exercises.__file__).with_suffix(".md").read_text(encoding="utf-8")
NAMES = [name for names in exercises.EXERCISES.values() for name in names]
EYE = torch.eye(4, dtype=torch.float64)


def verdict(name, function):
    _, state = exercises.guarded("mine.py", exercises.judge, name, {name: function})
    assert "\n" not in state
    return state


# Right and wrong answers --------------------------------------------------------------------------

@pytest.mark.parametrize("name", NAMES)
def test_solutions_are_right_and_empty_functions_not_yet(name):
    spec = {}
    exec(exercises.stubs(), spec)
    assert verdict(name, getattr(solutions, name)) == "solved"
    assert verdict(name, spec[name]) == "not yet"
    assert inspect.signature(spec[name]) == inspect.signature(getattr(solutions, name))


@pytest.mark.parametrize("name, given, by_hand", [
    ("n_k", (0.05,), [16, int(7.57), int(3.58), int(1.69), 1]),         # fourth root 0.473
    ("n_k", (0.01,), [16, int(5.06), int(1.60), 1, 1]),                 # fourth root 0.316
    ("lc_sum", (EYE[[0, 0]],), 8), ("lc_sum", (torch.stack([EYE[0], -EYE[0]]),), 0),
    ("delta_lcd", (EYE[[0, 0, 0, 0]],), 4 / 3),
    ("lc_floor", (6, 2), 36 * (1 / 2 - 1 / 5)), ("lc_floor", (5, 4), 0),
    ("text_gradient", (torch.tensor([[3.0, 4.0]]), torch.ones(2, 2), torch.tensor([0]), 0.5),
     [[-3, -4], [3, 4]]),                                               # -+ z / (2 lam)
    ("three_runs", (), [(1, 16, 240 / 48), (0.01, 16, 242 / 11), (1, 4, 240 / 12)]),
])
def test_solutions_by_hand(name, given, by_hand):
    assert exercises.same(exercises.tensor(getattr(solutions, name)(*given)), by_hand)


@pytest.mark.parametrize("name", exercises.BY_HAND)
def test_cases_by_hand_end_in_what_the_solution_gives(name):
    """But n_k's, which would tell the answer. They are shown where no slip alone is found."""
    given, words = exercises.BY_HAND[name]
    right = exercises.tensor(getattr(solutions, name)(*given)).flatten()
    ends = [float(word) for word in re.findall(r"-?\d+\.?\d*", words)[-len(right):]]
    assert name == "n_k" or exercises.same(right, ends)
    state = verdict(name, lambda *x: 3 * exercises.tensor(getattr(solutions, name)(*x)) + 1)
    assert f"not that; a case by hand: {words}; yours gives " in state


def test_solutions_are_what_the_modules_say():
    g, z = exercises.unit_rows(5, 3).requires_grad_(), exercises.unit_rows(4, 3, seed=2)
    y = torch.tensor([0, 2, 4, 0])
    losses.clip_loss(z @ g.T / 0.3, y).backward()
    torch.testing.assert_close(solutions.text_gradient(z, g.detach(), y, 0.3), g.grad)
    assert [sum(data.class_counts(12, n, tau)) // 4 for tau, n, _ in solutions.three_runs()] == [
        48, 11, 12]
    five = torch.tensor(solutions.five_in_the_plane())
    assert losses.lc_loss(five, reduction="sum").item() == pytest.approx(solutions.lc_floor(5, 2))


@pytest.mark.parametrize("name, words, wrong", [
    (name, *slip) for name, slips in exercises.SLIPS.items() for slip in slips.items()])
def test_slips_are_told_apart(name, words, wrong):
    """Each in its own words, where the part of it that may be anything is right."""
    def answer(*given):
        value, right = (exercises.tensor(f(*given)) for f in (wrong, getattr(solutions, name)))
        return torch.where(value.isnan(), right, value)
    assert verdict(name, answer).endswith(words)
    for shown in (words, exercises.BY_HAND[name][1]):
        assert not re.search(r"sqrt|K/\(K-1\)|1/\(N|1/d|pentagon", shown)     # the answer


@pytest.mark.parametrize("name, wrong, words", [
    ("etf", lambda K: EYE[:K], "can be wider"),
    ("etf", lambda K: EYE[:K, :K] - 1 / K, "length 1"),
    ("etf", lambda K: [[0, 1], [0.9, -0.5], [-0.9, -0.5]], "length 1"),
    ("etf", lambda K: [[math.cos(2 * math.pi * k / K), math.sin(2 * math.pi * k / K)]
                       for k in range(K)], "etf(4): all pairs"),
    ("lc_sum", lambda g: exercises.cosines(g).sum() / 2, "yours gives 0.0"),    # three slips
    ("lc_sum", lambda g: exercises.misses(g, -1).square().sum() / 2, "yours gives 0.6667"),
    ("lc_sum", lambda g: 0.99 * solutions.lc_sum(g), "yours gives 1.32"),
    ("lc_sum", lambda g: solutions.lc_sum(g) * (len(g) > 3), "not that, though right in this case"),
    ("same_predictions", lambda m: m, "not above 0.8"),
    ("same_predictions", lambda m: 0.45 ** 0.5 * m + 0.55 ** 0.5 * torch.eye(m.shape[1])[-1],
     "not above 0.8"),                                                  # 4/3 x 0.55 = 0.73
    ("same_predictions", lambda m: m[:1].expand(len(m), -1), "change their class"),
    ("same_predictions", lambda m: m + 2, "length 1"),
    ("why_zero", lambda: "A", "the sum is zero for any z"),
    ("five_in_the_plane", lambda: [[1, 0], [0, 1], [-1, 0], [0, -1], [1, 0]], "smaller sum"),
    ("three_runs", lambda: [(1, 16, 5), (0.01, 16, 22), (1, 16, 5)], "as many images"),
    ("three_runs", lambda: [(1, 16, 5), (0.01, 16, 22), (1, 4, 24)], "equally many steps"),
    ("three_runs", lambda: [(1, 16, 5), (0.05, 16, 22), (1, 4, 20)], "tau should be"),
    ("three_runs", lambda: [(1, 16, 5), (0.01, 8, 22), (1, 4, 20)], "16 shots"),
    ("three_runs", lambda: [(1, 16, 5), (0.01, 16, 22), (1, 0, 20)], "whole numbers"),
    *[("what_follows", lambda more=more: {"A", "C", "F", more}, f"{more} does not follow")
      for more in "BDEG"],
    ("what_follows", lambda: {"A"}, "not all"),
    ("what_follows", lambda: {"H"}, "letters from A to G"),
])
def test_wrong_answers(name, wrong, words):
    state = verdict(name, wrong)
    assert state.startswith("not right: ") and words in state


def test_other_right_answers():
    assert verdict("etf", lambda K: [[1, 0], [-0.5, 0.75 ** 0.5], [-0.5, -0.75 ** 0.5]] if K == 3
                   else torch.tensor([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) / 3 ** 0.5
                   ) == "solved"
    assert verdict("etf", lambda K: [[0, 1], [0.87, -0.5], [-0.87, -0.5]] if K == 3 else [
        [0.94, 0, -0.33], [-0.47, 0.82, -0.33], [-0.47, -0.82, -0.33], [0, 0, 1]]) == "solved"
    assert verdict("five_in_the_plane", lambda: [
        [1, 0], [0.31, 0.95], [-0.81, 0.59], [-0.81, -0.59], [0.31, -0.95]]) == "solved"
    assert verdict("lc_sum", lambda g: solutions.lc_sum(g).float()[None]) == "solved"
    assert verdict("lc_sum", lambda g: (solutions.lc_sum(g), g.zero_())[0]) == "solved"
    assert exercises.GIVEN["lc_sum"][0][0].any()        # it was a copy


# Code that does not behave ------------------------------------------------------------------------

@pytest.mark.parametrize("code, words", [
    ("raise KeyboardInterrupt", "KeyboardInterrupt: KeyboardInterrupt (line 2)"),
    ("raise KeyError('a word\\nand another')", "KeyError: 'a word\\nand another' (line 2)"),
    ("import sys; sys.exit(3)", "SystemExit: 3 (line 2)"),
    ("return g.no_such", "AttributeError: 'Tensor' object has no attribute 'no_such' (line 2)"),
    ("raise NotImplementedError('torch has no such thing')", "torch has no such thing"),
    ("pass", "returned None"), ("return '12'", "should be numbers, got str"),
    ("return {}", "should be numbers, got dict"), ("return [[1], [1, 2]]", "should be numbers"),
    ("return g", "should be one number, got the shape (3, 4)"),
    ("return float('nan')", "nan or inf"),
    ("return []", "should be numbers"), ("return lc_sum(g)", "RecursionError"),
])
def test_code_is_answered_in_one_line_and_spoils_nothing_else(at, code, words):
    Path("mine.py").write_text(f"def lc_sum(g):\n    {code}\nprint('word')\ndef why_zero():\n"
                               "    print('word')\n    return 'C'\n", encoding="utf-8")
    code, said, error = call(exercises.main, 3, "--answers", "mine.py")
    assert (code, said.count("\n"), error) == (1, 1, "")
    assert said.startswith("3  lc_sum: not right: ") and words in said
    assert call(exercises.main, 6, "--answers", "mine.py") == (
        1, "6  text_gradient: not right: there is no function text_gradient in the file\n"
        "6  why_zero: solved\n", "")


@pytest.mark.parametrize("text, words", [
    ("def n_k(:", "SyntaxError"), ("import no_such_module", "ModuleNotFoundError"),
    ("raise SystemExit", "SystemExit"), ("x = '\udcff'", "your code stopped with"),
])
def test_a_file_that_does_not_load(at, text, words):
    Path("mine.py").write_text(text, encoding="utf-8", errors="surrogateescape")
    code, said, error = call(exercises.main, "--answers", "mine.py")
    assert (code, said.count("\n"), error) == (1, 1, "") and words in said


# The command and the page -------------------------------------------------------------------------

def test_the_command(at):
    assert "my_answers.py is new: fill in its functions" in done(main=exercises.main)
    assert call(exercises.main, 7) == (
        1, "7  lc_floor: not yet\n7  five_in_the_plane: not yet\n", "")
    words = [1, "--answers", solutions.__file__]
    assert done(*words, main=exercises.main) == "1  n_k: solved\n"
    for words in ([9], ["x"], ["--answers", "no/such.py"], ["--answers", "my_anwsers.py"]):
        refused(*words, main=exercises.main)
    assert [path.name for path in Path().iterdir()] == ["my_answers.py"]


def test_the_page_has_all_functions_folds_its_hints_and_plans_the_time():
    parts = re.split(r"^## (?:\d\. )?", PAGE.split("\n## Hints\n")[0], flags=re.M)[2:]
    assert len(parts) == 8 and all(f"`{name}" in part for part, names in zip(
        parts, exercises.EXERCISES.values(), strict=True) for name in names)
    hints = PAGE.split("\n## Hints\n")[1]
    assert hints.count("<details>") == hints.count("</details>") == PAGE.count("<details>") == 5
    spans = [tuple(map(int, span)) for span in re.findall(r"^\| (\d+)-(\d+) ", PAGE, flags=re.M)]
    assert spans[0][0] == 0 and spans[-1][1] == 90          # the plan has ninety minutes
    assert all(a[1] == b[0] for a, b in itertools.pairwise(spans))
