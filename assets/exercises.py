"""Checks answers to the eight exercises of exercises.md: offline, in seconds, a line a function.

    python assets/exercises.py                  # writes my_answers.py, empty functions to fill in;
    python assets/exercises.py                  # from then on: each solved, not yet or not right
    python assets/exercises.py 3                # number 3 alone
    python assets/exercises.py 3 --answers elsewhere/mine.py

Only that file is run, each of its functions by itself; Ctrl-C ends one that never ends. Answers are
compared with solutions.py's on random unit vectors g (K, d), z (N, d); a slip is a wrong function
that gives just the same answer. Where none does, a small case is worked out in words.
"""
import ast
import copy
import math
import sys
import traceback
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))
import data
import losses
from assets import solutions

EXERCISES = {1: ["n_k"], 2: ["etf"], 3: ["lc_sum"], 4: ["delta_lcd", "same_predictions"],
             5: ["lc_parts"], 6: ["text_gradient", "why_zero"],
             7: ["lc_floor", "five_in_the_plane"], 8: ["three_runs", "gain", "what_follows"]}


class Wrong(Exception):
    """What is wrong with an answer, in one line that doesn't hold the right one."""


# What goes wrong ----------------------------------------------------------------------------------

def unit_rows(*shape, seed=1):
    draw = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(draw, dim=-1)


def fractions(tau):
    return [16 * tau ** (k / 4) for k in range(5)]


def cosines(g):
    """Of the K (K-1) pairs i != j."""
    return (g @ g.T)[~torch.eye(len(g), dtype=torch.bool)]


def misses(g, sign=1):
    return cosines(g) + sign / (len(g) - 1)


def shared(g):
    """||gbar||^2"""
    return g.mean(dim=0).square().sum()


def gradient(z, g, y, lam, push=1, one=1, printed=False, scale=1.0, inside=1.0):
    """text_gradient in its parts: pull towards own images, push away from the others."""
    p, own = (g @ z.T / (lam * inside)).softmax(dim=0).T, F.one_hot(y, len(g)).double()     # (N, K)
    pushed = (p * own).sum(dim=1, keepdim=True) if printed else p
    weights = (p - one) * own + push * pushed * (1 - own)
    return scale / (len(z) * lam) * weights.T @ z


def interval(x, t, correction=1, power=0.5):
    return t * torch.tensor(x).std(correction=correction) / len(x) ** power


def near(got, wanted):
    """As near as cosines of vectors written down with two decimals are."""
    return (got - wanted).abs().max() < 0.025


def unit(g):
    return near(g.norm(dim=1), 1)


def classes(g):
    """What 2,000 random images are taken for."""
    return (unit_rows(2000, g.shape[1]) @ g.T).argmax(dim=1)


GIVEN = {
    "n_k": [(0.01,), (0.05,)],
    "etf": [(3,), (4,)],
    "lc_sum": [(unit_rows(3, 4),), (unit_rows(6, 4),)],
    "delta_lcd": [(unit_rows(3, 4),), (unit_rows(7, 5),)],
    "same_predictions": [(losses.simplex_etf(K, K + 2).double(),) for K in (3, 4)],
    "lc_parts": [(unit_rows(3, 4),), (unit_rows(7, 5),)],
    "text_gradient": [(unit_rows(7, 5), unit_rows(4, 5, seed=2),        # class 3 has no image
                       torch.tensor([0, 0, 0, 0, 1, 1, 2]), 0.4)],
    "lc_floor": [(6, 2), (1000, 512), (5, 4), (4, 6)],
    "gain": [([-1.0, 0.5, 3.0, 0.0, 0.5], 2.776)],
}
AXES = torch.eye(4, dtype=torch.float64)
BY_HAND = {              # a small case in words, for an answer that is no slip alone
    "n_k": ((0.01,), "at tau = 0.01 the third class has 16 x 0.316^2 = 1.60, cut off to 1, and no "
                     "class has less"),
    "lc_sum": ((AXES,), "four texts at right angles are 12 pairs that miss mu = -1/3 by 1/3, and "
                        "the sum is 12/9 = 1.3333"),
    "delta_lcd": ((AXES,), "four texts at right angles have cosines 0, mu = -1/3, ||gbar||^2 = 1/4 "
                           "and Delta_LCD = 0.3333"),
    "lc_parts": ((AXES[[0, 0, 1]],), "at the cosines 1, 0, 0 and mu = -1/2 the mean miss is 5/6, "
                                     "and the parts are 0.6944 and 0.2222"),
    "text_gradient": ((AXES[:2, :2], AXES[[0, 0], :2], torch.tensor([0, 1]), 0.25),
                      "z (1, 0) of class 0 and (0, 1) of class 1, each p 1/2, at lam = 1/4 have "
                      "the gradients (-1, 1) and (1, -1)"),
    "lc_floor": ((4, 2), "a square, K = 4 and d = 2, has 8 cosines 0, 4 of -1 and mu = -1/3, and "
                         "is at the floor with 8/9 + 16/9 = 2.6667"),
    "gain": (([1.0, 1.0, 1.0, 5.0], 3.0), "1, 1, 1, 5 at t = 3 have the variance 12/3, so s = 2, "
                                          "and the answer is 2 and 3"),
}
ANY = math.nan          # in a slip of two numbers: whatever the other one is
SLIPS = {
    "n_k": {
        "you rounded; the rule cuts off": lambda tau: [max(1, round(n)) for n in fractions(tau)],
        "you rounded up, or took k/K for k/(K-1)":
            lambda tau: [math.ceil(n) for n in fractions(tau)],
        "a class is left without any image": lambda tau: [int(n) for n in fractions(tau)],
        "an image can't be cut into parts": fractions,
    },
    "lc_sum": {
        "pairs i = j are counted too": lambda g: (g @ g.T + 1 / (len(g) - 1)).square().sum(),
        "you have the mean; Eq. (5) is a sum": lambda g: misses(g).square().mean(),
        "each pair counts twice in Eq. (5)": lambda g: misses(g).square().sum() / 2,
        "mu has the wrong sign": lambda g: misses(g, sign=-1).square().sum(),
        "mu is missing": lambda g: cosines(g).square().sum(),
        "the square is missing": lambda g: misses(g).sum(),
    },
    "delta_lcd": {
        "a factor that depends on K is missing": shared,
        "the length of gbar is not squared": lambda g: len(g) / (len(g) - 1) * shared(g).sqrt(),
        "mu is left out": lambda g: cosines(g).mean(),
        "this is the mean of squares, which is L_LC": lambda g: misses(g).square().mean(),
    },
    "lc_parts": {
        "the two parts are swapped": lambda g: solutions.lc_parts(g)[::-1],
        "the first is Delta_LCD itself, not its square": lambda g: (misses(g).mean(), ANY),
        "the first lacks the factor of exercise 4": lambda g: (shared(g) ** 2, ANY),
        "the second divides as for a sample; all pairs are here": lambda g: (ANY, misses(g).var()),
        "the second has the pairs i = j in it": lambda g: (ANY, (g @ g.T).var(correction=0)),
    },
    "text_gradient": {                                      # of N = 7 images, at lambda = 0.4
        "a factor is missing: L_CLIP is a mean": lambda *x: gradient(*x, scale=7),
        "a factor is missing: a logit is a cosine over lambda": lambda *x: gradient(*x, scale=0.4),
        "two factors are missing: of the mean, of lambda": lambda *x: gradient(*x, scale=7 * 0.4),
        "the softmax inside has forgotten lambda": lambda *x: gradient(*x, inside=1 / 0.4),
        "the sign is flipped: this one points downhill": lambda *x: -gradient(*x),
        "the repulsion is as printed: whose probability pushes g_k away?":
            lambda *x: gradient(*x, printed=True),
        "the repulsion has the wrong sign": lambda *x: gradient(*x, push=-1),
        "the repulsion is missing": lambda *x: gradient(*x, push=0),
        "the -1 of the cohesion is missing": lambda *x: gradient(*x, one=0),
    },
    "lc_floor": {
        "a simplex ETF exists here: how small is the sum?":
            lambda K, d: K**2 * (1 / d - 1 / (K - 1)),
        "no ETF fits into these dimensions, so it can't be zero": lambda K, d: 0,
        "this is the mean; a sum was asked for": lambda K, d: K / (K - 1) * (1 / d - 1 / (K - 1)),
        "this bounds all S_ij^2; i = j and mu still have to go in": lambda K, d: K * K / d,
        "this bounds S_ij^2 for i != j; mu still has to go in": lambda K, d: K * K / d - K,
    },
    "gain": {
        "the first is a sum, not a mean": lambda x, t: (sum(x), ANY),
        "the second is that of single runs": lambda x, t: (ANY, interval(x, t, power=0)),
        "in the second t is missing": lambda x, t: (ANY, interval(x, 1)),
        "s of a sample divides by n - 1": lambda x, t: (ANY, interval(x, t, correction=0)),
        "in the second n stands for its root": lambda x, t: (ANY, interval(x, t, power=1)),
    },
}
WANTED = {               # of an answer that is one of many
    "etf": {
        "each vector should have length 1": lambda m, K: unit(m),
        "all pairs should have the same cosine":
            lambda m, K: near(cosines(m), cosines(m)[0]),
        "all angles are equal, but they can be wider: do your vectors sum to zero?":
            lambda m, K: near(cosines(m).mean(), -1 / (K - 1)),
    },
    "same_predictions": {
        "each text should have length 1": lambda g, m: unit(g),
        "Delta_LCD of your texts is not above 0.8": lambda g, m: losses.delta_lcd(g) > 0.8,
        "images change their class; what may all texts share without moving any prediction?":
            lambda g, m: torch.equal(classes(g), classes(m)),
    },
    "five_in_the_plane": {
        "each text should have length 1": unit,
        "there are five with a smaller sum of Eq. (5)":
            lambda g: misses(F.normalize(g)).square().sum() < solutions.lc_floor(5, 2) + 0.01,
    },
    "three_runs": {
        "tau should be 1, 0.01, 1": lambda runs: runs[:, 0].tolist() == [1, 0.01, 1],
        "the first two should have 16 shots": lambda runs: runs[:2, 1].tolist() == [16, 16],
        "shots and epochs are whole numbers from 1 on":
            lambda runs: (runs[:, 1:] >= 1).all() and (runs[:, 1:] % 1 == 0).all(),
        "the control has not as many images as the long-tailed set":        # 45, so 48 will do
            lambda runs: runs[2, 1] == 4,
        "there are not equally many steps":                                # in an epoch 48, 11, 12
            lambda runs: (steps := runs[:, 2] * tensor([48, 11, 12])).max() <= 1.1 * steps.min(),
    },
}
REFUTED = {
    "why_zero": {"A": "the sum is zero for any z, and those in the check don't sum to zero",
                 "B": "it holds at every point, long before a minimum", "C": "",
                 "D": "it holds for vectors of any length"},
    "what_follows": {"A": "", "B": "an interval that holds 0 is compatible with a loss, too",
                     "C": "", "D": "that it may be 0 does not show that it is 0",
                     "E": "one interval lies within the other: their order is open", "F": "",
                     "G": "how much does the control lose, with few images and no imbalance?"},
}


# The checks ---------------------------------------------------------------------------------------

def tensor(value):
    if isinstance(value, (list, tuple)):
        return torch.stack([tensor(row) for row in value])
    return torch.as_tensor(value, dtype=torch.float64).detach()


def numbers(name, value, shape):
    """An answer, be it a number, a tensor or lists -> float64; an ETF has any number of columns."""
    try:
        got = tensor(value)
    except (TypeError, ValueError, RuntimeError):
        raise Wrong(f"{name} should be numbers, got {type(value).__name__}") from None
    got = got.reshape(()) if shape == () and got.numel() == 1 else got
    if got.shape != shape and not (name == "etf" and got.shape[:-1] == shape[:1]):
        wanted = f"the shape {tuple(shape)}" if shape else "one number"
        raise Wrong(f"{name} should be {wanted}, got the shape {tuple(got.shape)}")
    if not got.isfinite().all():
        raise Wrong(f"{name} holds nan or inf: is something divided by zero?")
    return got


def same(got, other):
    other = tensor(other)
    return torch.allclose(got, torch.where(other.isnan(), got, other), rtol=1e-4, atol=1e-6)


def both(name, answer, given):
    """-> what the answer gives, what the solution gives"""
    right = tensor(getattr(solutions, name)(*given))
    return numbers(name, answer(*given), right.shape), right


def by_hand(name, answer):
    given, words = BY_HAND[name]
    got, right = both(name, answer, given)
    if same(got, right):
        return f"not that, though right in this case: {words}"
    return f"not that; a case by hand: {words}; yours gives {got.round(decimals=4).tolist()}"


def complaint(name, answer, given):
    """"" where all that is wanted holds, or where it is the same as the solution's."""
    got, right = both(name, answer, given)
    if name in WANTED:
        return next((words for words, holds in WANTED[name].items() if not holds(got, *given)), "")
    if same(got, right):
        return ""
    slips = (words for words, slip in SLIPS[name].items() if same(got, slip(*given)))
    return next(slips, "") or by_hand(name, answer)


def check_numbers(name, answer):
    for given in GIVEN.get(name, [()]):
        words = complaint(name, answer, given)
        if words:
            plain = given and all(isinstance(x, (int, float)) for x in given)
            raise Wrong(f"{name}({', '.join(map(str, given))}): {words}" if plain else words)


def check_letters(name, answer):
    given, refuted = answer(), REFUTED[name]
    letters = {*map(str, given)} if isinstance(given, (str, set, list, tuple)) else set()
    if not letters or letters - refuted.keys():
        raise Wrong(f"{name} should be letters from A to {max(refuted)}")
    for letter in sorted(letters):
        if refuted[letter]:
            raise Wrong(f"{letter} does not follow: {refuted[letter]}")
    if "" in [refuted[letter] for letter in refuted.keys() - letters]:
        raise Wrong("what you chose does follow, and it is not all that does")


# A student's file ---------------------------------------------------------------------------------

def stubs():
    """The text of a file of answers: the solutions without their bodies."""
    tree = ast.parse(Path(solutions.__file__).read_text(encoding="utf-8"))
    tree.body[0].value.value = "Answers to the exercises: python assets/exercises.py"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            node.body[1:] = [ast.parse("raise NotImplementedError").body[0]]
    return ast.unparse(tree).replace("\n\ndef ", "\n\n\ndef ") + "\n"


def load(path):
    """The names of a file of answers, run where its prints and questions are not heard."""
    answers = {"__name__": "answers", "print": lambda *_, **__: None, "input": lambda *_: ""}
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), answers)
    return answers


def judge(name, answers):
    """Raises Wrong, or whatever the student's function raises, unless the answer is right."""
    function = answers.get(name)
    if not callable(function):
        raise Wrong(f"there is no function {name} in the file")

    def answer(*given):
        value = function(*copy.deepcopy(given))
        if value is None:
            raise Wrong(f"{name} returned None: is its `return` missing?")
        return value

    (check_letters if name in REFUTED else check_numbers)(name, answer)


def guarded(path, job, *given):
    """Run a student's code -> what it returned, and in one line how it went."""
    try:
        return job(*given), "solved"
    except Wrong as wrong:
        return None, f"not right: {wrong}"
    except BaseException as error:                  # a student's code may raise anything
        if isinstance(error, NotImplementedError) and not str(error):   # the stub's own
            return None, "not yet"
        lines = [f" (line {frame.lineno})" for frame in traceback.extract_tb(error.__traceback__)
                 if frame.filename == str(path)]
        return None, (f"not right: your code stopped with {type(error).__name__}: "
                      f"{data.one_line(error)}{''.join(lines[-1:])}")


def judge_all(exercises, path):
    """Print a line a function -> 0 where all are solved, else 1."""
    answers, state = guarded(path, load, path)
    if answers is None:
        print(f"{path}: {state}")
        return 1
    code = 0
    for number in exercises:
        for name in EXERCISES[number]:
            _, state = guarded(path, judge, name, answers)
            print(f"{number}  {name}: {state}")
            code |= state != "solved"
    return code


def main(argv=None):
    p = data.Parser(description="Check answers to the exercises of assets/exercises.md.")
    p.add_argument("number", nargs="?", type=data.whole(1, 8), help="one exercise (all)")
    p.add_argument("--answers", type=Path, metavar="FILE", help="your functions (my_answers.py, "
                   "which is written, empty, where it is not there)")

    def job():
        args = p.parse_args(argv)
        path = args.answers or Path("my_answers.py")
        if not args.answers and not path.exists():
            data.write(path, stubs())
            print(f"{path} is new: fill in its functions, then the same command again")
            return 0
        if not path.is_file():
            raise ValueError(f"{path}: expected a file of answers, and there is none; leave out "
                             "--answers to have an empty one, my_answers.py")
        return judge_all([args.number] if args.number else EXERCISES, path)

    return data.run_script(job)


if __name__ == "__main__":
    sys.exit(main())
