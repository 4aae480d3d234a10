"""assets/exercises.py: right answers, wrong ones and what it says of them; stubs; bad code."""
import builtins
import inspect
import itertools
import math
import re
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import data
import train
from assets import exercises, solutions

ROOT = Path(exercises.__file__).parents[1]
PAGE = (ROOT / "assets" / "exercises.md").read_text(encoding="utf-8")
EYE = torch.eye(4, dtype=torch.float64)
CHECKS = {name: judge for checks in exercises.EXERCISES.values() for name, judge in checks.items()}
NAMES = list(CHECKS)


def answers(**changed):
    """The right answers, some functions replaced."""
    right = {name: getattr(solutions, name) for name in NAMES}
    return SimpleNamespace(**{**right, **changed})


def verdict(name, given):
    value, state, words = exercises.guarded(lambda: CHECKS[name](given))
    assert value is None and "\n" not in words
    return state, words


def dot(a, b):
    return sum(float(x) * float(y) for x, y in zip(a, b, strict=True))


# The right answers --------------------------------------------------------------------------------

@pytest.mark.parametrize("name", NAMES)
def test_solutions_are_right(name):
    assert verdict(name, answers()) == ("solved", "")


def test_n_k_by_hand():
    """Fourth roots of 0.05 and 0.01 by hand: 0.473, 0.316."""
    rows = {0.05: [16, 7.57, 3.58, 1.69, 0.8], 0.01: [16, 5.06, 1.6, 0.506, 0.16]}
    assert solutions.n_k() == {tau: [max(1, int(n)) for n in row] for tau, row in rows.items()}


@pytest.mark.parametrize("right", [
    lambda K: [[1, 0], [-0.5, 0.75 ** 0.5], [-0.5, -0.75 ** 0.5]] if K == 3 else
    [[x / 3 ** 0.5 for x in v] for v in ((1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1))],
    lambda K: list(solutions.etf(K).flip(1)),
])
def test_any_rotation_and_size_of_an_etf_is_right(right):
    assert verdict("etf", answers(etf=right)) == ("solved", "")


def test_text_gradient_is_the_slope_of_l_clip():
    """Differences of -1/N sum log p, in Python numbers."""
    z, g = exercises.unit_rows(3, 4), exercises.unit_rows(3, 4, seed=2)
    y, lam, h = torch.tensor([0, 2, 0]), 0.3, 1e-5

    def l_clip(g):
        total = 0
        for z_n, label in zip(z.tolist(), y.tolist(), strict=True):
            e = [math.exp(dot(z_n, g_k) / lam) for g_k in g.tolist()]
            total -= math.log(e[label] / sum(e)) / len(z)
        return total

    got = solutions.text_gradient(z, g, y, lam)
    for k, n in itertools.product(range(3), range(4)):
        step = torch.zeros_like(g)
        step[k, n] = h
        assert got[k, n].item() == pytest.approx((l_clip(g + step) - l_clip(g - step)) / (2 * h),
                                                 abs=1e-7)
    assert got.sum(dim=0).abs().max() < 1e-12


def test_floor_by_hand():
    assert solutions.lc_floor(6, 2) == pytest.approx(36 * (1 / 2 - 1 / 5))
    assert solutions.lc_floor(5, 4) == 0
    g = solutions.five_in_the_plane()
    total = sum((dot(a, b) + 1 / 4) ** 2 for a, b in itertools.permutations(g, 2))
    assert total == pytest.approx(solutions.lc_floor(5, 2))


def test_parts_and_delta_by_loops():
    g = exercises.unit_rows(5, 3)
    cosines = [dot(a, b) for a, b in itertools.permutations(g, 2)]
    delta = sum(cosines) / 20 + 1 / 4
    assert solutions.delta_lcd(g).item() == pytest.approx(delta)
    shared, unequal = solutions.lc_parts(g)
    assert shared == pytest.approx(delta ** 2)
    assert shared + unequal == pytest.approx(sum((c + 1 / 4) ** 2 for c in cosines) / 20)
    assert solutions.lc_sum(g).item() == pytest.approx(20 * (shared + unequal))


def test_commands_by_hand():
    """45 images at tau = 0.01: 16 10 6 4 2 and seven times 1. Steps as in the docstring."""
    assert sum(data.class_counts(12, 16, 0.01)) == 16 + 10 + 6 + 4 + 2 + 7 * 1 == 45
    dataset = data.load("world")
    runs = {name: exercises.planned(name, words, dataset)
            for name, words in solutions.commands().items()}
    assert [(run["images"], run["steps"]) for run in runs.values()] == [
        (192, 240), (45, 242), (48, 240)]


# Wrong answers ------------------------------------------------------------------------------------

def misses(g, mu=None):
    mu = -1 / (len(g) - 1) if mu is None else mu
    return torch.stack([g[i] @ g[j] - mu for i in range(len(g)) for j in range(len(g)) if i != j])


def gradient(z, g, y, lam, minus=1.0, printed=False, scale=None):
    """text_gradient with slips to choose."""
    out = torch.zeros_like(g)
    for z_n, label in zip(z, y, strict=True):
        p = torch.softmax(g @ z_n / lam, dim=0)
        for k in range(len(g)):
            weight = p[label] if printed else p[k]
            out[k] += (p[k] - minus if k == label else weight) * z_n
    return out * (1 / (len(z) * lam) if scale is None else scale)


def with_commands(**changed):
    """The right commands, words replaced in one of them."""
    commands = solutions.commands()
    for name, (old, new) in changed.items():
        name = name.replace("_", "-")
        commands[name] = " ".join(commands[name]).replace(old, new).split()
    return lambda: commands


WRONG = [       # exercise, function, answer, what the message must say
    (1, "n_k", lambda: {0.05: [16, 8, 4, 2, 1], 0.01: [16, 5, 2, 1, 1]}, "rounded to the nearest"),
    (1, "n_k", lambda: {0.05: [16, 7, 3, 1, 0], 0.01: [16, 5, 1, 0, 0]}, "without any image"),
    (1, "n_k", lambda: {0.05: [16, 8, 4, 2, 1], 0.01: [16, 6, 2, 1, 1]}, "tau = 0.05: you rounded"),
    (1, "n_k", lambda: {0.05: [16, 7.57, 3.58, 1.69, .8], 0.01: [16] * 5}, "not these"),
    (1, "n_k", lambda: {0.05: [16, 5, 1, 1, 1], 0.01: [16, 7, 3, 1, 1]}, "other tau"),
    (1, "n_k", lambda: {0.05: [16, 12, 8, 4, 1], 0.01: [16] * 5}, "straight line"),
    (2, "etf", lambda K: EYE[:K], "can be wider"),
    (2, "etf", lambda K: torch.eye(K) - 1 / K, "a factor is missing"),
    (2, "etf", lambda K: solutions.etf(K)[:, :2], "vector 1 has length"),
    (2, "etf", lambda K: [[math.cos(2 * math.pi * k / K), math.sin(2 * math.pi * k / K)]
                          for k in range(K)], "K = 4: the cosines of pairs go from"),
    (3, "lc_sum", lambda g: misses(g).square().sum() + len(g) * (1 + 1 / (len(g) - 1)) ** 2,
     "for K = 3: your pairs i = j are counted too"),
    (3, "lc_sum", lambda g: misses(g).square().mean(), "you have the mean"),
    (3, "lc_sum", lambda g: misses(g).square().sum() / 2, "each pair counts once"),
    (3, "lc_sum", lambda g: misses(g, 1 / (len(g) - 1)).square().sum(), "wrong sign"),
    (3, "lc_sum", lambda g: misses(g, -1 / len(g)).square().sum(), "wrong denominator"),
    (3, "lc_sum", lambda g: misses(g).sum(), "square is missing"),
    (4, "delta_lcd", lambda g: g.mean(dim=0).square().sum(), "a factor that depends on K"),
    (4, "delta_lcd", lambda g: len(g) / (len(g) - 1) * g.mean(dim=0).norm(), "not squared"),
    (4, "delta_lcd", lambda g: misses(g, 0.0).mean(), "mu is left out"),
    (4, "same_predictions", lambda m: m[:1].expand(len(m), -1), "random images change"),
    (4, "same_predictions", lambda m: m + 2 * torch.eye(m.shape[1]).double()[-1], "has length"),
    (4, "same_predictions", lambda m: m, "not above 0.8"),
    (5, "lc_parts", lambda g: (misses(g).mean(), misses(g).var(correction=0)), "not its square"),
    (5, "lc_parts", lambda g: (misses(g).mean() ** 2, misses(g).var()), "for a sample"),
    (5, "lc_parts", lambda g: (misses(g).mean() ** 2, (g @ g.T).var(correction=0)), "i = j in it"),
    (5, "lc_parts", lambda g: solutions.lc_parts(g)[::-1], "swapped"),
    (5, "lc_parts", lambda g: (g.mean(dim=0).square().sum() ** 2, 0), "factor of Delta_LCD"),
    (6, "text_gradient", lambda z, g, y, lam: gradient(z, g, y, lam, printed=True), "p_k'"),
    (6, "text_gradient", lambda z, g, y, lam: gradient(z, g, y, lam, printed=True, scale=1),
     "And a factor is missing"),
    (6, "text_gradient", lambda z, g, y, lam: gradient(z, g, y, lam, scale=1), "its scale is not"),
    (6, "text_gradient", lambda z, g, y, lam: gradient(z, g, y, lam, scale=1 / len(z)), "cosine"),
    (6, "text_gradient", lambda z, g, y, lam: gradient(z, g, y, lam, minus=0), "-1 of the"),
    (6, "text_gradient", lambda z, g, y, lam: -gradient(z, g, y, lam), "sign is flipped"),
    (6, "text_gradient", lambda z, g, y, lam: gradient(z, g, y, 1.0, scale=1 / (len(z) * lam)),
     "forgotten lambda"),
    (6, "why_zero", lambda: "A", "that can't be the reason"),
    (7, "lc_floor", lambda K, d: K * K * (1 / d - 1 / (K - 1)) / (K * (K - 1)), "this is the mean"),
    (7, "lc_floor", lambda K, d: K * K * (1 / d - 1 / (K - 1)), "a simplex ETF exists here"),
    (7, "lc_floor", lambda K, d: max(0, K * K / d - K), "mu still has to go in"),
    (7, "lc_floor", lambda K, d: 0, "can't be zero"),
    (7, "five_in_the_plane", lambda: [[1, 0], [0, 1], [-1, 0], [0, -1], [1, 0]], "a smaller one"),
    (8, "commands", with_commands(control=("--shots 4", "--shots 16")), "not as many"),
    (8, "commands", with_commands(long_tailed=("--epochs 22", "--epochs 5")), "equally many steps"),
    (8, "commands", with_commands(control=("--tau 1", "--tau 1 --npt")), "another question"),
    (8, "commands", with_commands(control=("1 2 3", "4 5 6")), "other seeds"),
    (8, "commands", with_commands(control=("--tau 1", "--tau 0.01")), "wants tau = 1"),
    (8, "commands", with_commands(control=("--tau 1", "--tua 1")), "train.py says: "),
    (8, "commands", lambda: {"balanced": "--tau 1", "long-tailed": "", "control": ""}, "a list of"),
    (8, "gain", lambda x, t: (sum(x), 1.0), "a sum, not a mean"),
    (8, "gain", lambda x, t: (solutions.gain(x, t)[0], solutions.gain(x, 1)[1]), "t is missing"),
    (8, "gain", lambda x, t: (solutions.gain(x, t)[0], solutions.gain(x, t)[1] * len(x) ** .5),
     "single runs"),
    (8, "what_follows", lambda: {"A", "B", "C"}, "B does not follow"),
    (8, "what_follows", lambda: {"A"}, "not all"),
    (8, "what_follows", lambda: "ACF", "should be letters"),
]
TELLING = {     # what would give the answer away
    1: r"16\D+7\D+3|16\D+5\D+1", 2: r"-\s?0\.[35]|-1/[23]", 3: r"\d\.\d",
    4: r"K/\(K-1\)|sqrt", 5: r"\d\.\d", 6: r"1/\(N|\bC\b|\bp_k\b(?!')",
    7: r"1/d|10\.8|952|6\.25|pentagon", 8: r"--(shots|epochs) |A\W+C|\b[CF]\b"}


@pytest.mark.parametrize("number, name, wrong, words", WRONG)
def test_wrong_answers_are_refused_without_the_answer(number, name, wrong, words):
    state, said = verdict(name, answers(**{name: wrong}))
    assert state == "not right" and words in said, said
    assert not re.search(TELLING[number], said), said


def test_two_typical_slips_and_more_for_each():
    assert all(sum(number == n for n, *_ in WRONG) >= 2 for number in exercises.EXERCISES)


@pytest.mark.parametrize("letters", ["B", "D", "E", "G"])
def test_statements_that_do_not_follow(letters):
    _, said = verdict("what_follows", answers(what_follows=lambda: letters.split()))
    assert said.startswith(f"{letters} does not follow")


# Code that does not behave ------------------------------------------------------------------------

def leaves(*_):
    sys.exit(3)


def raises(*_):
    raise KeyError("a word\nand another")


@pytest.mark.parametrize("code, words", [
    (raises, "your code stopped with KeyError: 'a word\\nand another'"),
    (leaves, "your code stopped with SystemExit: 3"),
    (lambda g: g.no_such, "AttributeError: 'Tensor' object has no attribute 'no_such'"),
    (lambda g: None, "returned None"),
    (lambda g: "12", "should be one number, got str"),
    (lambda g: g, "should be one number, got Tensor"),
    (lambda g: [1.0, 2.0], "got list of 2"),
    (lambda g: True, "got bool"),
    (lambda g: math.nan, "is nan"),
    (lambda g: torch.tensor(math.inf), "is inf"),
    (lambda g, h: 1, "TypeError"),
    (3, "no function lc_sum"),
])
def test_bad_code_is_answered_in_one_line(code, words):
    state, said = verdict("lc_sum", answers(lc_sum=code))
    assert state == "not right" and words in said, said


@pytest.mark.parametrize("rows, words", [
    ([[1, 0], [0, 1]], "should have 3 rows, got the shape (2, 2)"),
    ([[1, 0], [0, 1], [1]], "should be 3 rows of numbers"),
    ([["a"], ["b"], ["c"]], "should be 3 rows of numbers, got list of 3"),
    ({"a": 1}, "should be 3 rows of numbers, got dict of 1"),
    ([math.nan] * 3, "got the shape (3,)"),
    ([[math.nan, 0]] * 3, "holds nan"),
    (torch.zeros(3, 2), "length"),
    (1.0, "got the shape ()"),
    ([], "should be 3 rows"),
])
def test_bad_matrices_are_answered_in_one_line(rows, words):
    state, said = verdict("etf", answers(etf=lambda K: rows))
    assert state == "not right" and words in said, said


def test_a_wrong_shape_of_a_gradient():
    _, said = verdict("text_gradient", answers(text_gradient=lambda z, g, y, lam: z))
    assert said == "text_gradient should have 4 rows of 5 numbers, got the shape (7, 5)"


def test_what_is_given_is_a_copy():
    def empties(g):
        total = solutions.lc_sum(g)
        g.zero_()
        return total
    assert verdict("lc_sum", answers(lc_sum=empties)) == ("solved", "")


def test_an_endless_loop_is_left_behind(monkeypatch):
    stop = threading.Event()

    def endless(g):
        while not stop.is_set():
            pass
    monkeypatch.setattr(exercises, "LIMIT", 0.2)
    state, said = verdict("lc_sum", answers(lc_sum=endless))
    stop.set()
    assert state == "not right" and said.startswith("no answer after 0.2 seconds")


def test_the_process_ends_beside_an_endless_loop(tmp_path):
    (tmp_path / "mine.py").write_text("def lc_sum(g):\n    while True:\n        pass\n")
    code = ("import sys; from assets import exercises; exercises.LIMIT = 1; "
            "sys.exit(exercises.main(sys.argv[1:]))")
    done = subprocess.run([sys.executable, "-c", code, "3", "--answers", tmp_path / "mine.py"],
                          cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and not done.stderr, done.stderr
    assert done.stdout == ("3  lc_sum: not right: no answer after 1 seconds: does a loop never "
                           "end?\n")


# The command --------------------------------------------------------------------------------------

def call(capsys, *words):
    code = exercises.main([str(word) for word in words])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_stubs_say_not_yet(capsys, tmp_path):
    for words in ([], ["--answers", tmp_path / "mine.py"]):
        if words:
            assert call(capsys, "--stubs", words[1])[0] == 0
        code, out, err = call(capsys, *words)
        lines = out.splitlines()
        assert code == 1 and not err
        assert lines == [f"{number}  {name}: not yet: still to be written"
                         for number, names in exercises.EXERCISES.items() for name in names]
    code, _, err = call(capsys, "--stubs", tmp_path / "mine.py")
    assert code == 2 and "may hold answers" in err and err.count("\n") == 1


def test_stubs_have_what_the_solutions_have():
    spec = exercises.stubs()
    assert re.findall(r"^def (\w+)", spec, flags=re.M) == NAMES
    for name in NAMES:
        stub, solution = (inspect.signature(getattr(m, name)) for m in (exercises, solutions))
        assert stub == solution
    compile(spec, "stubs", "exec")


def test_each_function_is_judged_by_itself(capsys, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(exercises.stubs() + "\n\ndef what_follows():\n    return 'ACF'\n"
                    "\n\ndef gain(x, t):\n    return sum(x), 1\n")
    assert call(capsys, 8, "--answers", path)[1] == (
        "8  commands: not yet: still to be written\n"
        "8  gain: not right: the first: a sum, not a mean\n"
        "8  what_follows: not right: what_follows should be letters from A to G, as "
        "{\"A\", \"B\"}\n")


@pytest.mark.parametrize("text, words", [
    ("def n_k(:", "SyntaxError"), ("import no_such_module", "ModuleNotFoundError"),
    ("def n_k():\n    return 1 / 0", "ZeroDivisionError: division by zero (line 2)"),
    ("", "there is no function n_k"), ("x = '\udcff'", "your code stopped with"),
])
def test_a_file_that_does_not_load(capsys, tmp_path, text, words):
    (tmp_path / "mine.py").write_text(text, errors="surrogateescape")
    code, out, err = call(capsys, 1, "--answers", tmp_path / "mine.py")
    assert code == 1 and not err and words in out and out.count("\n") == 1


def test_solved_is_exit_code_0(capsys):
    code, out, _ = call(capsys, 3, "--answers", solutions.__file__)
    assert (code, out) == (0, "3  lc_sum: solved\n")


@pytest.mark.parametrize("words", [[9], ["x"], ["--solution"], [3, "--answers", "no_such.py"],
                                   [3, "--answers", "assets"], [3, "--solution"],
                                   ["--stubs", "no/such/folder.py"]])
def test_refused_in_one_line(capsys, words, monkeypatch):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: False))
    code, out, err = call(capsys, *words)
    assert code == 2 and not out and err.startswith("error: ") and err.count("\n") == 1


@pytest.mark.parametrize("said, shown", [(["yes", "yes"], True), (["yes", "no"], False),
                                         (["", "yes"], False), ([], False)])
def test_the_solution_is_shown_after_two_questions(capsys, monkeypatch, said, shown):
    replies = iter(said)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))

    def answer(question):
        for reply in replies:
            return reply
        raise EOFError
    monkeypatch.setattr(builtins, "input", answer)
    code, out, _ = call(capsys, 4, "--solution")
    assert code == 0 and ("def same_predictions(m):" in out) == shown
    assert ("def delta_lcd(g):" in out) == shown


# The page -----------------------------------------------------------------------------------------

def test_the_page_has_all_exercises_and_functions():
    assert re.findall(r"^## (\d)\. ", PAGE, flags=re.M) == list("12345678")
    for number, part in enumerate(re.split(r"^## \d\. ", PAGE, flags=re.M)[1:], 1):
        for name in exercises.EXERCISES[number]:
            assert f"`{name}" in part or number == 1, name
    assert all(len(line) <= 100 or line.startswith("| ") for line in PAGE.splitlines())
    assert solutions.__doc__.startswith("SOLUTIONS ")


def test_the_plan_has_ninety_minutes_and_25_lines():
    plan = PAGE.split("## A plan of 90 minutes")[1].split("\n## 1.")[0].strip().splitlines()
    assert len(plan) <= 25
    spans = [tuple(map(int, span)) for span in re.findall(r"^\| (\d+)-(\d+) ", "\n".join(plan),
                                                          flags=re.M)]
    assert spans[0][0] == 0 and spans[-1][1] == 90
    assert all(a[1] == b[0] for a, b in itertools.pairwise(spans))


def test_commands_of_the_page_are_there():
    found = re.findall(r"python (\S+\.py)([^`\n]*)", " ".join(PAGE.split()))
    assert len(found) >= 10
    for script, words in found:
        assert (ROOT / script).is_file()
        words = [word for word in words.split("`")[0].split() if word.startswith("--")]
        help_of = {"assets/exercises.py": exercises.parser(), "train.py": train.parser()}
        for word in words:
            if script in help_of:
                assert word in help_of[script].format_help()


def test_hints_of_the_page():
    """Exercise 3: opposite texts 0, equal ones 8. Exercise 6: K = 2 at equal cosines."""
    a = torch.tensor([1.0, 0.0]).double()
    assert solutions.lc_sum(torch.stack([a, -a])) == 0
    assert solutions.lc_sum(torch.stack([a, a])) == 8
    z = torch.tensor([[0.6, 0.8]]).double()
    got = solutions.text_gradient(z, torch.stack([a, a]), torch.tensor([0]), 0.5)
    torch.testing.assert_close(got, torch.cat([-z, z]) / (2 * 0.5))
    assert [round(tau ** 0.25, 3) for tau in (0.05, 0.01)] == [0.473, 0.316]
