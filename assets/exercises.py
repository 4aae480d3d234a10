"""Eight exercises on the method, from counting to research: what they ask stands in exercises.md.

    python assets/exercises.py                              # each function: solved or not yet
    python assets/exercises.py 3                            # checks number 3, in seconds, offline
    python assets/exercises.py --stubs my_answers.py        # a file to write answers into
    python assets/exercises.py 3 --answers my_answers.py
    python assets/exercises.py 3 --solution                 # asks twice, on a terminal only

Answers go into the functions below, or into the copy that --stubs writes. g (K, d), z (N, d) and y
(N,) are float64 and int64 tensors; an answer may be a tensor or lists of numbers.
"""
import inspect
import math
import sys
import threading
import traceback
from functools import partial
from numbers import Real
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))
import data
import losses
import train
from assets import files

# Stubs -------------------------------------------------------------------------------------------

# 1
def n_k():
    """Images of K = 5 classes, at most 16, worked out by hand -> {0.05: [five], 0.01: [five]}."""
    raise NotImplementedError


# 2
def etf(K):
    """K vectors of a simplex ETF, Eq. (3): K rows, each of length 1, of a size of your choice."""
    raise NotImplementedError


# 3
def lc_sum(g):
    """Eq. (5) as printed, a sum, with E_W = 1: g (K, d) -> a number. Loops are fine."""
    raise NotImplementedError


# 4
def delta_lcd(g):
    """Definition 2 of unit vectors g (K, d) by way of their mean gbar -> a number."""
    raise NotImplementedError


def same_predictions(m):
    """m (K, d), a simplex ETF with m[:, -1] = 0 -> unit vectors (K, d) with Delta_LCD above 0.8.

    Every image must be given the same class by yours as by m.
    """
    raise NotImplementedError


# 5
def lc_parts(g):
    """mean L_LC of g (K, d) in two parts -> (Delta_LCD^2, Var of the cosines of pairs i != j)."""
    raise NotImplementedError


# 6
def text_gradient(z, g, y, lam):
    """dL_CLIP/dg_k for all k, with features as free vectors: z (N, d), g (K, d), y (N,) -> (K, d).

    No autograd. y counts from 0; class k may have no image in the batch.
    """
    raise NotImplementedError


def why_zero():
    """Why these gradients sum to zero: "A", "B", "C" or "D"."""
    raise NotImplementedError


# 7
def lc_floor(K, d):
    """What the sum of Eq. (5) can't fall below for K unit vectors of size d -> a number."""
    raise NotImplementedError


def five_in_the_plane():
    """Five unit vectors (5, 2) whose sum of Eq. (5) is at that floor."""
    raise NotImplementedError


# 8
def commands():
    """Words behind `python train.py`: {"balanced": [...], "long-tailed": [...], "control": [...]}.

    A list of words each, as "--tau 1 --seed 1".split() is one.
    """
    raise NotImplementedError


def gain(differences, t):
    """n differences of paired runs -> (their mean, half of its 95 % interval); t is Student's."""
    raise NotImplementedError


def what_follows():
    """The letters of the statements that follow from the table, as {"A", "B"}."""
    raise NotImplementedError


# Checker -----------------------------------------------------------------------------------------

LIMIT = 20              # seconds for one exercise


class NotYet(Exception):
    """A stub is as it was."""


class Wrong(Exception):
    """What is wrong with an answer, in one line that doesn't hold the right one."""


def ask(answers, name, *given):
    """What the student's function returns; it gets copies."""
    function = getattr(answers, name, None)
    if not callable(function):
        raise Wrong(f"there is no function {name}; see --stubs for what is expected")
    try:
        value = function(*(x.clone() if isinstance(x, torch.Tensor) else x for x in given))
    except NotImplementedError as error:
        if str(error):                                          # not the stub's
            raise
        raise NotYet from None
    if value is None:
        raise Wrong(f"{name} returned None: is its `return` missing?")
    return value


def a_number(value, name):
    """-> float."""
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        value = value.item()
    if not isinstance(value, Real) or isinstance(value, bool):
        raise Wrong(f"{name} should be one number, got {kind(value)}")
    if not math.isfinite(value):
        raise Wrong(f"{name} is {value}: is something divided by zero?")
    return float(value)


def a_matrix(value, rows, columns, name):
    """-> float64 (rows, columns); None: any number of columns."""
    try:
        if isinstance(value, (list, tuple)):
            value = torch.stack([torch.as_tensor(row, dtype=torch.float64) for row in value])
        value = torch.as_tensor(value).detach().double()
    except (TypeError, ValueError, RuntimeError):
        raise Wrong(f"{name} should be {rows} rows of numbers, got {kind(value)}") from None
    wanted = (rows, value.shape[-1] if columns is None and value.ndim else columns)
    if value.shape != wanted:
        size = f" of {columns} numbers" if columns else ""
        raise Wrong(f"{name} should have {rows} rows{size}, got the shape {tuple(value.shape)}")
    if not value.isfinite().all():
        raise Wrong(f"{name} holds nan or inf: is something divided by zero?")
    return value


def a_tuple(value, length, name):
    if not isinstance(value, (list, tuple)) or len(value) != length:
        raise Wrong(f"{name} should return {length} things, got {kind(value)}")
    return value


def kind(value):
    length = f" of {len(value)}" if isinstance(value, (list, tuple, dict, set)) else ""
    return type(value).__name__ + length


def close(a, b):
    a, b = torch.as_tensor(a, dtype=torch.float64), torch.as_tensor(b, dtype=torch.float64)
    return torch.allclose(a, b, rtol=1e-4, atol=1e-6)


def compare(at, got, right, slips, otherwise="not that"):
    """Wrong, in the words of the slip that gives just this answer: slips {words: its value}."""
    if close(got, right):
        return
    for words, value in slips.items():
        if close(got, value):
            raise Wrong(f"{at}: {words}")
    raise Wrong(f"{at}: {otherwise}")


def unit_rows(*shape, seed=1):
    draw = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(draw, dim=-1)


def check_lengths(g, name):
    for k, length in enumerate(g.norm(dim=1).tolist()):
        if abs(length - 1) > 1e-4:
            raise Wrong(f"{name}: vector {k + 1} has length {length:.4f}, each should have 1")


def off_diagonal(S):
    return S[~torch.eye(len(S), dtype=torch.bool)]


def check_n_k(answers):
    """Against data.class_counts."""
    given = ask(answers, "n_k")
    for tau in (0.05, 0.01):
        if not isinstance(given, dict) or tau not in given:
            raise Wrong(f"n_k should return {{0.05: [...], 0.01: [...]}}, got {kind(given)}")
        row = a_tuple(given[tau], 5, f"tau = {tau}: n_k")
        row = [a_number(n, f"tau = {tau}: each") for n in row]
        exact = [16 * tau ** (k / 4) for k in range(5)]
        compare(f"tau = {tau}", row, data.class_counts(5, 16, tau), {
            "you rounded to the nearest whole number; the rule cuts fractions off":
                [max(1, round(n)) for n in exact],
            "you rounded up; the rule cuts fractions off": [math.ceil(n) for n in exact],
            "a class is left without any image": [int(n) for n in exact],
            "an image can't be cut into parts": exact,
            "the exponent goes from 0 to 1: it is k/(K-1), not k/K":
                [max(1, int(16 * tau ** (k / 5))) for k in range(5)],
            "k starts at 0, so that the first class has 16":
                [max(1, int(16 * tau ** ((k + 1) / 4))) for k in range(5)],
            "the decay is exponential, not a straight line":
                [max(1, int(16 - (16 - 16 * tau) * k / 4)) for k in range(5)],
            "this is the other tau's row": data.class_counts(5, 16, 0.06 - tau),
        }, "not these; write 16 tau^(k/4) down for k = 0..4 first")


def check_etf(answers):
    """Lengths and angles; any rotation will do."""
    for K in (3, 4):
        value = ask(answers, "etf", K)
        m = a_matrix(value, K, None, f"etf({K})")
        lengths = m.norm(dim=1)
        if close(lengths, lengths[0].expand(K)) and not close(lengths[0], 1.0):
            raise Wrong(f"K = {K}: all lengths are {lengths[0]:.4f}, not 1: a factor is missing "
                        "(the root in front of Eq. (2))")
        check_lengths(m, f"K = {K}")
        cosines = off_diagonal(m @ m.T)
        low, high = cosines.min().item(), cosines.max().item()
        if high - low > 1e-4:
            raise Wrong(f"K = {K}: the cosines of pairs go from {low:.4f} to {high:.4f}; all "
                        "pairs should have the same")
        if not close(low, -1 / (K - 1)):
            raise Wrong(f"K = {K}: all angles are equal, but they can be wider: do your vectors "
                        "sum to zero?")


def check_lc_sum(answers):
    """Against losses.lc_loss."""
    for K, d in ((3, 4), (6, 4)):
        g, mu = unit_rows(K, d), -1 / (K - 1)
        S = off_diagonal(g @ g.T)
        total = (S - mu).square().sum()
        got = a_number(ask(answers, "lc_sum", g), "lc_sum")
        compare(f"for K = {K}", got, losses.lc_loss(g, reduction="sum"), {
            "your pairs i = j are counted too": total + K * (1 - mu) ** 2,
            "you have the mean over the pairs; Eq. (5) is a sum": total / len(S),
            "each pair counts once; Eq. (5) has (i, j) and (j, i)": total / 2,
            "you average over i; Eq. (5) is a sum": total / K,
            "mu has the wrong sign": (S + mu).square().sum(),
            "mu is missing": S.square().sum(),
            "mu has the wrong denominator": (S + 1 / K).square().sum(),
            "the square is missing": (S - mu).sum(),
            "the square stands outside of the sum": (S - mu).sum().square(),
            "you have absolute values where Eq. (5) has squares": (S - mu).abs().sum(),
        }, "not that; try texts whose sum you know by hand, such as two opposite ones")


def check_delta_lcd(answers):
    """Against losses.delta_lcd."""
    for K, d in ((3, 4), (7, 5)):
        g = unit_rows(K, d)
        square, S = g.mean(dim=0).square().sum(), off_diagonal(g @ g.T)
        got = a_number(ask(answers, "delta_lcd", g), "delta_lcd")
        compare(f"for K = {K}", got, losses.delta_lcd(g), {
            "a factor that depends on K is missing": square,
            "the factor stands upside down": (K - 1) / K * square,
            "the length of gbar is not squared": K / (K - 1) * square.sqrt(),
            "this is the squared length of the sum, not of the mean": K * K * square,
            "mu is left out": S.mean(),
            "the pairs i = j are counted too": square + 1 / (K - 1),
            "this is the mean of squares, which is L_LC": (S + 1 / (K - 1)).square().mean()})


def check_same_predictions(answers):
    """The same predictions as an ETF's, far from an ETF."""
    for K, d in ((4, 6), (3, 5)):
        m = losses.simplex_etf(K, d).double()
        g = a_matrix(ask(answers, "same_predictions", m), K, d, "same_predictions")
        check_lengths(g, f"for K = {K}")
        delta = losses.delta_lcd(g).item()
        if delta <= 0.8:
            raise Wrong(f"Delta_LCD of your texts is {delta:.3f}, which is not above 0.8")
        z = unit_rows(2000, d)
        changed = ((z @ g.T).argmax(dim=1) != (z @ m.T).argmax(dim=1)).sum().item()
        if changed:
            raise Wrong(f"{changed} of {len(z)} random images change their class; what may you "
                        "add to every text without moving a difference of two logits?")


def check_lc_parts(answers):
    """Against losses.lc_parts."""
    for K, d in ((3, 4), (7, 5)):
        g = unit_rows(K, d)
        S, everything = off_diagonal(g @ g.T), (g @ g.T).flatten()
        shared, unequal = losses.lc_parts(g)
        parts = a_tuple(ask(answers, "lc_parts", g), 2, "lc_parts")
        got = [a_number(part, "each part") for part in parts]
        if close(got, [unequal, shared]):
            raise Wrong("the two parts are swapped")
        n = len(S)
        compare(f"for K = {K} the first part", got[0], shared, {
            "is Delta_LCD itself, not its square": shared.sqrt(),
            "lacks the factor of Delta_LCD from exercise 4": ((K - 1) / K) ** 2 * shared,
            "leaves mu out of Delta_LCD": S.mean().square(),
            "has all of mean L_LC in it": shared + unequal})
        compare(f"for K = {K} the second part", got[1], unequal, {
            "divides as for a sample, but all pairs are here": S.var(),
            "divides as for a sample of the pairs i < j, but all are here": unequal * n / (n - 2),
            "has the pairs i = j in it": everything.var(correction=0),
            "is a standard deviation, not a variance": S.std(correction=0),
            "is a sum, not a mean": unequal * n,
            "does not take the mean off the cosines": S.square().mean(),
            "has all of mean L_LC in it": shared + unequal})


def gradient_parts(z, g, y, lam):
    """Sec. 4.3 without 1/(N lambda): cohesion, repulsion, repulsion as printed; (K, d) each."""
    p = losses.class_probabilities(z, g, lam)
    own = F.one_hot(y, len(g)).to(p)                                        # (N, K)
    p_own = (p * own).sum(dim=1, keepdim=True)                  # p_k' of an image of class k'
    return ((p - 1) * own).T @ z, (p * (1 - own)).T @ z, (p_own * (1 - own)).T @ z


def check_text_gradient(answers):
    """Against the closed form, which the tests hold against differences of L_CLIP."""
    z, g = unit_rows(7, 5), unit_rows(4, 5, seed=2)
    y, lam = torch.tensor([0, 0, 0, 0, 1, 1, 2]), 0.4                       # class 3 has no image
    cohesion, repulsion, printed = gradient_parts(z, g, y, lam)
    s = 1 / (len(z) * lam)
    right = s * (cohesion + repulsion)
    got = a_matrix(ask(answers, "text_gradient", z, g, y, lam), *g.shape, "text_gradient")
    as_printed = ("the repulsion is as printed, with p_k'; whose probability pushes g_k away from "
                  "an image of another class?")
    compare("your rows", got, right, {
        "the sum over the images is right, and its scale is not: L_CLIP is a mean, and a logit is "
        "a cosine over lambda": cohesion + repulsion,
        "a factor is missing, as L_CLIP is a mean over the batch": right * len(z),
        "a factor is missing, as a logit is a cosine over lambda": right * lam,
        "lambda multiplies where it should divide": right * lam ** 2,
        "the sign is flipped: this one points downhill": -right,
        as_printed: s * (cohesion + printed),
        f"{as_printed} And a factor is missing": cohesion + printed,
        "the repulsion has the wrong sign": s * (cohesion - repulsion),
        "the repulsion is missing": s * cohesion,
        "the cohesion is missing": s * repulsion,
        "the -1 of the cohesion is missing": s * (losses.class_probabilities(z, g, lam).T @ z),
        "the softmax inside has forgotten lambda": s * sum(gradient_parts(z, g, y, 1.0)[:2]),
    }, f"not that; the sum of your rows has length {got.sum(dim=0).norm():.4f}, and should be 0")


def check_why_zero(answers):
    """C, and why not another."""
    letter = ask(answers, "why_zero")
    refuted = {"A": "the sum is zero for any z, and those in the check don't sum to zero",
               "B": "it holds at every point, long before a minimum",
               "D": "it holds for vectors of any length"}
    if letter not in ("A", "B", "C", "D"):
        raise Wrong('why_zero should return one of "A", "B", "C", "D"')
    if letter in refuted:
        raise Wrong(f"that can't be the reason, as {refuted[letter]}")


def check_lc_floor(answers):
    """Against losses.lc_floor."""
    for K, d in ((6, 2), (1000, 512), (5, 4), (4, 6)):
        total = losses.lc_floor(K, d, reduction="sum")
        got, at = a_number(ask(answers, "lc_floor", K, d), "lc_floor"), f"K = {K}, d = {d}"
        if total == 0 and not close(got, total):
            raise Wrong(f"{at}: a simplex ETF exists here, so how small can the sum get?")
        compare(at, got, total, {
            "this is the mean over the pairs; a sum was asked for": total / (K * (K - 1)),
            "this bounds all S_ij^2; i = j and mu still have to go in": K * K / d,
            "this bounds S_ij^2 for i != j; mu still has to go in": K * K / d - K,
            "no ETF fits into these dimensions, so it can't be zero": 0.0,
            "one factor K is lost": total / K,
            "the signs of the two parts are swapped": -total,
        }, "not that; multiply the square of Eq. (5) out and bound each part")


def check_five_in_the_plane(answers):
    """A set that reaches the floor."""
    g = a_matrix(ask(answers, "five_in_the_plane"), 5, 2, "five_in_the_plane")
    check_lengths(g, "your texts")
    total = losses.lc_loss(g, reduction="sum").item()
    if not close(total, losses.lc_floor(5, 2, reduction="sum")):
        raise Wrong(f"their sum of Eq. (5) is {total:.4f}, and there is a smaller one; "
                    f"their mean has length {g.mean(dim=0).norm():.4f}")


def check_commands(answers):
    """A fair comparison: as many images and steps, and nothing else that differs."""
    given = ask(answers, "commands")
    names = ("balanced", "long-tailed", "control")
    if not isinstance(given, dict) or sorted(given) != sorted(names):
        raise Wrong(f"commands should return a dictionary with the keys {', '.join(names)}, got "
                    f"{kind(given)}")
    dataset = data.load("world")
    runs = {name: planned(name, given[name], dataset) for name in names}
    for name, tau, shots in (("balanced", 1, 16), ("long-tailed", 0.01, 16), ("control", 1, None)):
        settings = runs[name]["settings"]
        if settings["tau"] != tau or (shots or settings["shots"]) != settings["shots"]:
            raise Wrong(f"{name}: wants tau = {tau}" + (f" and {shots} shots" if shots else "")
                        + f", got {settings['tau']:g} and {settings['shots']}")
    check_equal(runs)
    images = {name: run["images"] for name, run in runs.items()}
    if not alike(images["control"], images["long-tailed"]):
        raise Wrong(f"the control trains on {images['control']} images, the long-tailed set has "
                    f"{images['long-tailed']}: not as many, within 10 %")
    steps = {name: run["steps"] for name, run in runs.items()}
    if not alike(min(steps.values()), max(steps.values())):
        raise Wrong("not equally many steps, within 10 %: "
                    + ", ".join(f"{name} {n}" for name, n in steps.items()))


def planned(name, words, dataset):
    """What train.py would do, without doing it: settings but for the seed, seeds, images, steps."""
    if not isinstance(words, (list, tuple)) or not all(isinstance(word, str) for word in words):
        raise Wrong(f"{name}: expected a list of words, got {kind(words)}")
    words = [word for word in words if word not in ("python", "train.py")]
    try:
        plan = train.parse(words)
        for args in plan:
            train.settle(args, dataset)
        drawn = [len(train.training_set(dataset, args)[1]) for args in plan]
    except ValueError as error:
        raise Wrong(f"{name}: train.py says: {files.one_line(error)}") from None
    kept = [{key: value for key, value in vars(args).items()
             if key not in ("seed", "draw_seed", "out", "in_grid", "quiet", "more_name")}
            for args in plan]
    if any(settings != kept[0] for settings in kept):
        raise Wrong(f"{name}: one setting and several seeds, please, no other grid")
    if kept[0]["dataset"] != "world" or not drawn[0]:
        raise Wrong(f"{name}: train a prompt learner on the embedded world")
    first = plan[0]
    return {"settings": kept[0], "seeds": sorted(args.seed for args in plan), "images": drawn[0],
            "steps": data.steps(drawn[0], first.batch_size) * first.epochs}


def check_equal(runs):
    """All that is not the question must be the same, and one seed says nothing."""
    first = runs["balanced"]
    for name, run in runs.items():
        if run["seeds"] != first["seeds"]:
            raise Wrong(f"{name} has other seeds than balanced: the runs can't be paired")
        for key, value in run["settings"].items():
            free = key in ("tau", "shots", "epochs", "shuffle_classes")
            if not free and value != first["settings"][key]:
                raise Wrong(f"{name} differs from balanced in {key}: that is another question")
    if len(first["seeds"]) < 3:
        raise Wrong(f"{len(first['seeds'])} seed(s): a spread needs at least three")


def alike(a, b):
    return abs(a - b) <= 0.1 * max(a, b)


def check_gain(answers):
    """The half interval is t s / sqrt(n), s with n - 1."""
    for values, t in (([1.0, 2.0, 4.0, 1.0], 3.182), ([-1.0, 0.5, 3.0, 0.0, 0.5], 2.776)):
        x = torch.tensor(values, dtype=torch.float64)
        mean, s, root = x.mean(), x.std(), math.sqrt(len(x))
        parts = a_tuple(ask(answers, "gain", values, t), 2, "gain")
        got = [a_number(part, "each of gain's two") for part in parts]
        compare("the first", got[0], mean, {"a sum, not a mean": x.sum()}, "not the mean")
        compare("the second", got[1], t * s / root, {
            "the spread of single runs; a mean of n spreads less": t * s,
            "the standard deviation alone": s,
            "t is missing": s / root,
            "1.96 in place of t is for many runs": 1.96 * s / root,
            "s of a sample divides by n - 1": t * x.std(correction=0) / root,
            "n in place of its root": t * s / len(x),
            "the whole interval; half of it was asked for": 2 * t * s / root,
        }, "not half of the interval")


def check_what_follows(answers):
    """A, C and F."""
    given = ask(answers, "what_follows")
    refuted = {"B": "an interval that holds 0 is compatible with no gain and with a loss",
               "D": "that it may be 0 does not show that it is 0",
               "E": "one interval lies within the other: their order is open",
               "G": "look at the control: how much is lost with few images and no imbalance?"}
    if isinstance(given, str) or not isinstance(given, (set, list, tuple)) or not all(
            letter in list("ABCDEFG") for letter in given):
        raise Wrong('what_follows should be letters from A to G, as {"A", "B"}')
    for letter in sorted(given):
        if letter in refuted:
            raise Wrong(f"{letter} does not follow: {refuted[letter]}")
    missing = 3 - len(set(given))
    if missing:
        raise Wrong("what you chose does follow, and it is not all that does")


EXERCISES = {           # the functions to write, and what each is judged by
    1: {"n_k": check_n_k},
    2: {"etf": check_etf},
    3: {"lc_sum": check_lc_sum},
    4: {"delta_lcd": check_delta_lcd, "same_predictions": check_same_predictions},
    5: {"lc_parts": check_lc_parts},
    6: {"text_gradient": check_text_gradient, "why_zero": check_why_zero},
    7: {"lc_floor": check_lc_floor, "five_in_the_plane": check_five_in_the_plane},
    8: {"commands": check_commands, "gain": check_gain, "what_follows": check_what_follows},
}


# The command line --------------------------------------------------------------------------------

def guarded(job, path=None):
    """Run a student's code -> what it answers, "solved" | "not yet" | "not right", one line."""
    said = []

    def work():
        try:
            said.append((job(), "solved", ""))
        except NotYet:
            said.append((None, "not yet", "still to be written"))
        except Wrong as wrong:
            said.append((None, "not right", str(wrong)))
        except BaseException as error:              # a student's code may raise anything
            said.append((None, "not right", f"your code stopped with {type(error).__name__}: "
                                            f"{files.one_line(error)}{line_of(error, path)}"))

    thread = threading.Thread(target=work, daemon=True)     # endless: it dies with the process
    thread.start()
    thread.join(LIMIT)
    return said[0] if said else (None, "not right", f"no answer after {LIMIT} seconds: does a loop "
                                                    "never end?")


def line_of(error, path):
    """The last line of the student's file that an exception came through, in words."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)
             if frame.filename == str(path or __file__)]
    return f" (line {lines[-1]})" if lines else ""


def load(path):
    """A file of answers as a module; in place: this very file."""
    if path is None:
        return sys.modules[__name__]
    module = ModuleType("answers")
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), vars(module))
    return module


def check(numbers, path=None):
    """Say of each function whether it is solved, one line each -> whether all are."""
    answers, state, words = guarded(lambda: load(path), path)
    if answers is None:
        print(f"{path}: {state}: {words}")
        return False
    states = []
    for number in numbers:
        for name, judge in EXERCISES[number].items():
            _, state, words = guarded(partial(judge, answers), path)
            print(f"{number}  {name}: {state}" + (f": {words}" if words else ""))
            states.append(state)
    return set(states) == {"solved"}


def stubs():
    """The text of an answer file: the stubs as they stand here."""
    text = Path(__file__).read_text(encoding="utf-8")
    part = text.split("# Stubs -")[1].split("\n", 2)[2].split("\n\n# Checker -")[0]
    return ('"""Answers: python assets/exercises.py 3 --answers THIS_FILE"""\nimport math\n\n'
            f"import torch\n\n\n{part}")


def show_solution(number):
    """Ask twice, on a terminal alone, then print the functions of solutions.py."""
    if not sys.stdin.isatty():
        raise ValueError("--solution asks before it shows anything, which takes a terminal")
    for question in (f"Show the solution of exercise {number}? Then it is no exercise any more.",
                     "Have you read what the checker says, and the hint in exercises.md?"):
        try:
            reply = input(f"{question} (yes/no) ").strip().lower()
        except EOFError:                                        # Ctrl-D
            reply = "no"
        if reply != "yes":
            print("not shown")
            return 0
    from assets import solutions
    for name in EXERCISES[number]:
        print(f"\n{inspect.getsource(getattr(solutions, name))}", end="")
    return 0


def parser():
    p = files.Parser(description="Check answers to the exercises of assets/exercises.md.")
    p.add_argument("number", nargs="?", type=files.whole(1, 8), help="one exercise; absent: all")
    p.add_argument("--answers", type=Path, metavar="FILE",
                   help="a .py file with your functions (absent: those in this file)")
    p.add_argument("--stubs", type=Path, metavar="FILE", help="write the empty functions there")
    p.add_argument("--solution", action="store_true", help="show it, after two questions")
    return p


def run(args):
    if args.stubs:
        if args.stubs.exists():
            raise ValueError(f"{args.stubs} is there already and may hold answers: choose another "
                             "name")
        files.write(args.stubs, stubs())
        print(f"write your answers into {args.stubs}, then: python assets/exercises.py 1 --answers "
              f"{args.stubs}")
        return 0
    if args.answers and (args.answers.suffix != ".py" or not args.answers.is_file()):
        raise ValueError(f"{args.answers}: expected a .py file that is there; --stubs makes one")
    if args.solution:
        if not args.number:
            raise ValueError("--solution wants the number of one exercise")
        return show_solution(args.number)
    solved = check([args.number] if args.number else list(EXERCISES), args.answers)
    return 0 if solved else 1


def main(argv=None):
    return files.exit_code(lambda: run(parser().parse_args(argv)), "interrupted")


if __name__ == "__main__":
    sys.exit(main())
