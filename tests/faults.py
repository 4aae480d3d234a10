"""Uses everything badly, on purpose, and counts what comes of it.

    python tests/faults.py                      # all of it: some 15 minutes on one core
    python tests/faults.py mutations commands   # only these; --seed and --cases change the draw

Parts: mutations (damaged files), commands (bad command lines), degenerate (legal, tiny sets),
writers (full disk, read-only folder, devices), concurrent (two starts at once), kills (and Ctrl-C).
A case is well if it is refused in one line with exit code 2, or if its numbers are those of the
undamaged files. Broken downloads are in tests/test_clip_model.py.

tests/test_faults.py draws a few of the same cases.
"""
import contextlib
import errno
import functools
import io
import itertools
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from conftest import hash_state
from small_runs import EUROSAT, SCRIPT, call, done, eurosat, files, started, told, write_classes
from test_runs import WORLD, killed_at, run_files

import clip_model
import data
import evaluate
import train
from assets import history

LONGEST_LINE, SLOW = 1200, 60.0             # characters, seconds
WORDS = "a photo of forest river annual crop land highway cat dog fox . centered satellite"
LONG = "x" * 100_000


# What came of a case ---------------------------------------------------------------------------

def judged(main, words, numbers=None, right=None):
    """Run main(words) -> "" where it is well, or what is wrong.

    numbers  a function: what was computed, where the command ends well; `right` is what it must be
    """
    start = time.monotonic()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            code, out, err = call(main, *words)
    except (Exception, SystemExit):                     # argparse's own exit is none of ours
        return traceback.format_exc()
    said = err.replace("\r", "\n").strip()
    last, seconds = said.split("\n")[-1], time.monotonic() - start
    if seconds > SLOW or "Traceback" in said or "Warning" in said:
        return f"{seconds:.0f} s: {said}"
    if code == 0:
        return "" if numbers and numbers() == right else f"accepted: {out}"
    one = f"\n{said}".count("\nerror: ") == 1 and last.startswith("error: ")
    return "" if code == 2 and one and len(last) < LONGEST_LINE else f"code {code}: {said}"


class Tally:
    """Counts the cases of each group and those that are not well, and prints these."""

    def __init__(self):
        self.cases, self.bad = Counter(), Counter()

    def add(self, group, name, wrong):
        self.cases[group] += 1
        if wrong:
            self.bad[group] += 1
            print(f"--- {group}: {name}\n{wrong[-1500:]}\n", file=sys.stderr, flush=True)

    def table(self):
        return evaluate.table([("group", "cases", "not well"), *(
            (group, n, self.bad[group]) for group, n in self.cases.items())])


# Damage ----------------------------------------------------------------------------------------

JUNK = [b"", b"{}", b"[]", b"null", b"\0" * 50, b"\xff\xfe\xfa", b"a,b\n\n1", b'{"a": NaN}',
        b"[" * 3000, b"\x89PNG\r\n\x1a\n", b"PK\3\4" * 20]


def bytes_damaged(raw, rng):
    at = rng.randrange(len(raw))
    bits = bytearray(raw)
    for _ in range(rng.choice([1, 30])):
        bits[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    return rng.choice([
        raw[:at], bytes(bits), raw[:at] + bytes(64) + raw[at + 64:], raw + rng.randbytes(9),
        raw[:at] + rng.randbytes(rng.randint(1, 20)) + raw[at:],
        raw[:at] + raw[at + rng.randint(1, 20):], rng.choice(JUNK)])


def filled(tensor, rng, value):
    flat = tensor.float().clone().flatten()
    flat[rng.randrange(len(flat))] = value
    return flat.reshape(tensor.shape)


TENSORS = [                                 # what one may become; of the last only a sum can tell
    *(functools.partial(filled, value=x) for x in (torch.nan, torch.inf, 1e30)),
    lambda t, _: t.long(), lambda t, _: t.to(torch.complex64), lambda t, _: t.to_sparse(),
    lambda t, _: t.to("meta"), lambda t, _: t.to(torch.float8_e5m2), lambda t, _: t.tolist(),
    lambda t, _: torch.cat([t.reshape(t.shape or 1)] * 2), lambda t, _: torch.zeros(0),
    lambda t, _: torch.tensor([[1.0, 2.0]]), lambda t, _: torch.zeros(1).expand(10 ** 9),
    lambda t, _: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8),
    lambda t, _: torch.zeros_like(t), lambda t, _: t.half(), lambda t, _: -t.float(),
    lambda t, rng: t.float() + 0.01 * (torch.arange(t.numel()).view(t.shape) == rng.randrange(9))]
ODD = [None, "", "x", LONG, "../..", "/etc/passwd", "a\nb", "\x1b[31m", "\0", '"', "a,b,c,d", -1, 0,
       10 ** 6, 10 ** 30, 1e308, float("nan"), float("inf"), True, [], [1], ["a"], [None], {},
       {"a": 1}, "ViT-Z", "world_sketch", [0] * 5, [-1] * 5, [10 ** 30] * 5]


def damaged(value, rng):
    """Dictionaries, lists and tensors inside each other, one of them lost, doubled or replaced."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice([*sorted(value), "one more"])
        if key in value and rng.random() < 0.15:
            return {k: v for k, v in value.items() if k != key}
        return value | {key: damaged(value.get(key), rng)}
    if isinstance(value, list) and value and rng.random() < 0.9:
        at = rng.randrange(len(value))
        one = [value[at]] * 2 if rng.random() < 0.2 else [damaged(value[at], rng)]
        return value[:at] + one + value[at + 1:]
    if isinstance(value, torch.Tensor) and rng.random() < 0.9:
        return rng.choice(TENSORS)(value, rng)
    return rng.choice(ODD)


def of_lines(content):
    return "\n".join(map(str, content if isinstance(content, list) else [content])).encode()


FORMS = {                                   # how a file's content is read and written again
    ".pt": (lambda raw: torch.load(io.BytesIO(raw), weights_only=True), clip_model.as_bytes),
    ".json": (json.loads, lambda content: json.dumps(content).encode())}
FORMS |= dict.fromkeys((".csv", ".txt"), (lambda raw: raw.decode().split("\n"), of_lines))


def file_damaged(path, rng):
    """A file's bytes damaged, as they lie or as what they say."""
    raw = path.read_bytes()
    if path.suffix not in FORMS or rng.random() < 0.4:
        return bytes_damaged(raw, rng)
    read, write = FORMS[path.suffix]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return write(damaged(read(raw), rng))


# Damaged files ---------------------------------------------------------------------------------

def small_weights(path):
    """A small CLIP that holds the vectors of a few words only."""
    state = hash_state(vl=1, tl=2)
    words = " ".join([WORDS, *EUROSAT.values()])
    ids = sorted({49406, 49407, *(i for word in words.split()
                                  for i in clip_model.prompt_ids(word))})
    state["token_embedding.words"] = torch.tensor(ids)
    state["token_embedding.weight"] = state["token_embedding.weight"][ids]
    torch.save(state, path)
    return path


class Subjects:
    """Finished runs whose files are damaged one at a time; each case starts from whole ones."""

    def __init__(self, root):
        self.out, self.right = root / "evaluation", {}
        self.satellite, self.own = root / "satellite", root / "own"
        weights = small_weights(root / "clip.pt")
        eurosat(root / "data", split=True, n=16)
        pets = write_classes(root / "pets", {
            f"{part}/{name}": n for part, n in (("train", 4), ("test", 3))
            for name in ("cat", "dog", "fox")})
        (root / "names.txt").write_text("cat\tcat\ndog\tdog\nfox\tfox\n")
        common = ["--method", "coop", "--n-ctx", 2, "--epochs", 1, "--shots", 4,
                  "--batch-size", 4, "--backbone", weights]
        self.own_words = [*common, "--dataset", pets, "--classnames", root / "names.txt"]
        done(*common, "--dataset", "eurosat", "--data-root", root / "data", "--out", self.satellite)
        done(*self.own_words, "--out", self.own)
        for run in (self.satellite, self.own):
            done(run, "--out", self.out, main=evaluate.main)
            self.right[run] = files(self.out)

    def evaluated(self, run, out, any_number=False):
        """What is wrong with an evaluation of a run."""
        right = self.right[run]
        return judged(evaluate.main, [run, "--out", out],
                      lambda: right if any_number else files(out), right)

    def trained(self, out):
        """What is wrong with the run of the own folder made again, or gone on with, at `out`."""
        return judged(train.main, [*self.own_words, "--out", out],
                      lambda: (out / "prompts.pt").read_bytes(),
                      (self.own / "prompts.pt").read_bytes())


def mutations(tally, seed, cases, root):
    """Damaged files; `cases` of them in all."""
    rng, s = random.Random(seed), Subjects(root)
    satellite = {"satellite/prompts.pt": 25, "clip.pt": 20, "satellite/result.json": 7,
                 "satellite/run.json": 7, "satellite/drawn.csv": 10,
                 "data/eurosat/split_zhou_EuroSAT.json": 10}
    picture = min((root / "pets/test").rglob("*.png"))  # another picture, as far as one can tell
    own = {"names.txt": 5, "own/split.json": 6, picture: 7}
    for name, share in (satellite | own).items():
        path = root / name
        whole = path.read_bytes()
        for i in range(max(1, share * cases // 100)):
            path.write_bytes(file_damaged(path, rng))
            for made in (s.out, root / "features"):
                shutil.rmtree(made, ignore_errors=True)
            wrong = s.evaluated(s.own if name in own else s.satellite, s.out, path == picture)
            tally.add(path.name, i, wrong)
            path.write_bytes(whole)
    killed, again = root / "killed", root / "again"
    killed_at(3, [*s.own_words, "--out", killed])
    for i in range(max(1, 5 * cases // 100)):
        shutil.copytree(killed, again)
        (again / "state.pt").write_bytes(file_damaged(killed / "state.pt", rng))
        tally.add("state.pt", i, s.trained(again))
        shutil.rmtree(again)


# Bad command lines -----------------------------------------------------------------------------

COMMANDS = {                                # "|" between two; each must be refused
    train.main: """--method magic|--method|--tau 0|--tau nan|--tau x|--tau 1e-300|--shots 0|
        --shots 1.5|--shots 99999999999|--seed -1|--seed 4294967296|--seed 1e3|--epochs 0|
        --batch-size 0|--batch-size -3|--lr nan|--lr -1|--lr inf|--lr 1e300|--npt --w1 nan|
        --npt --w1 -1|--npt --w2 inf|--w1 1|--npt maybe|--method zeroshot --npt|--npt --ew 1|
        --method zeroshot --epochs 3|--method coop --prompt-depth 2|--n-ctx 0|--history 3|
        --n-ctx 1000000|--n-ctx 5 --ctx-init a|--prompt-depth 0|--prompt-depth 99|--class-specific|
        --dataset wrold|--dataset no/such|--dataset eurosat --data-root /nowhere|--classnames x|
        --dataset world --classnames x|--backbone ViT-Z|--backbone RN50|--backbone .|
        --backbone /etc/passwd|--device tpu|--precision int8|--out /etc/passwd|--out /|
        --out /dev/null|--out /etc|--test-images 0|--no-such 3|loose|--classes novel|
        --reduction max|--reduction sum|--images 45|--dataset imagenetv2|--dataset {LONG}|
        --backbone {LONG}|--ctx-init {LONG}|--tau {LONG}|--method {LONG}|--{LONG}|--out {LONG}""",
    evaluate.main: """|no/such|/|/etc/passwd|run --table 1|run run|run --task magic|
        run --targets world|run --classnames x|run --image x.png|run --format csv|run --report x|
        run --task cross-dataset --classes base|run --device tpu|run --precision x|{LONG}|
        run --targets {LONG} --task cross-dataset""",
    data.main: """wrold|no/such|world --shots 0|world --shots x|world --shots 1.5|world --seed -1|
        world --seed 4294967296|world --seed x|world --tau 0|world --tau 2|world --tau nan|
        world --tau x|world --classnames x|eurosat --data-root /nowhere|--no-such|world world|
        imagenet --data-root /nowhere --fetch|all --data-root /nowhere|{LONG}|
        world --shots {LONG}""",
    history.main: "--seed 1 2|--method x|--no-such",
}


def commands(tally, seed, cases, root):
    """Bad command lines, each in an empty folder that stays empty; `cases` at most."""
    every = [(main, line.split()) for main, text in COMMANDS.items() for line in text.split("|")]
    random.Random(seed).shuffle(every)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for main, words in every[:cases]:
            wrong = judged(main, [word.replace("{LONG}", LONG) for word in words])
            left = [path.name for path in root.iterdir()]
            tally.add(f"{main.__module__}.py command lines", " ".join(words)[:90],
                      wrong or left and f"left {left}")


# Legal, but tiny -------------------------------------------------------------------------------

def degenerate(tally, seed, cases, root):
    """Sets at the edge: each works, in train.py and in evaluate.py, or says why not."""
    weights = small_weights(root / "clip.pt")
    many = {f"c{k}": 2 for k in range(80)}                          # more than the 64 dimensions
    sets = {"one class": {"cat": 4}, "two classes": {"cat": 4, "dog": 4}, "one picture": {"cat": 1},
            "two pictures": {"cat": 2}, "a picture each": {"cat": 1, "dog": 1},
            "more classes than dimensions": many, "one large": {"cat": 40, "dog": 2}}
    options = {"": [], "NPT": ["--npt"], "base": ["--classes", "base"], "a large batch": [
        "--batch-size", 500], "tail": ["--tau", 1e-9], "sums": ["--npt", "--reduction", "sum"]}
    folders = {name: write_classes(root / name, counts) for name, counts in sets.items()}
    for name, words, method in itertools.product(sets, options, ("coop", "cocoop", "maple")):
        if sets[name] == many and (method == "cocoop" or words not in ("", "NPT")):
            continue                                                # slow, and nothing new
        out = root / f"{name} {words} {method}"
        wrong = judged(train.main, [
            "--method", method, "--n-ctx", 2, "--epochs", 2, "--dataset", folders[name],
            *options[words], "--backbone", weights, "--out", out, "--shots", 2], lambda: 0, 0)
        if (out / "result.json").exists() and not wrong:
            told = out / "evaluation/base-to-novel.json"            # JSON has no NaN
            wrong = judged(evaluate.main, [out], lambda p=told: "NaN" in p.read_text(), False)
        tally.add("degenerate sets", f"{name} {words} {method}", wrong)


# Full disk and the like ------------------------------------------------------------------------

@contextlib.contextmanager
def full_disk(size):
    """No file may grow beyond `size` bytes: the system answers as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def read_only(folder):
    """A folder in which nobody but root may write, and we are not root meanwhile."""
    mode, root = folder.stat().st_mode & 0o777, os.geteuid() == 0
    try:
        folder.chmod(0o555)
        if root:
            os.seteuid(65534)
        yield
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(mode)


def failing(step, replace=os.replace):
    """os.replace that fails the step-th time, as on a full disk."""
    times = itertools.count(1)

    def replace_or_fail(a, b):
        if next(times) == step:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(a, b)
    return replace_or_fail


def writers(tally, seed, cases, root):
    """Every way to write, on a full disk, in a read-only folder, and on what is no plain file."""
    root.chmod(0o755)
    s, group = Subjects(root), "full disk and the like"
    every = {                               # name: main, words before the target, its name, a file
        "write": (lambda words: data.run_script(lambda: data.write(words[0], "x" * 1000)), [],
                  "x", ""),
        "train.py": (train.main, [*s.own_words, "--out"], "run", "run.json"),
        "evaluate.py": (evaluate.main, [s.own, "--out"], "run", "base-to-novel.json")}
    for name, (main, words, target, file) in every.items():
        for way in ("full disk", "read-only", "device", "folder in the way"):
            place = root / f"{name} {way}".replace(" ", "-")
            place.mkdir()
            guard = {"full disk": full_disk(20), "read-only": read_only(place)}.get(
                way, contextlib.nullcontext())
            if way == "device":
                os.mkfifo(place / target)
            if way == "folder in the way":
                (place / target / file).mkdir(parents=True)
            before = files(place)
            with guard:
                wrong = judged(main, [*words, place / target])
            left = files(place).keys() - before.keys() - {"run/.lock"}
            tally.add(group, f"{name}: {way}", wrong or left and f"left {left}")
    out = root / "open"                                 # beside a run that one may only read
    out.mkdir()
    out.chmod(0o777)
    shutil.rmtree(root / "features", ignore_errors=True)
    with read_only(root):
        tally.add(group, "a read-only run", s.evaluated(s.own, out))
    for step in range(1, 8):
        out = root / f"rename {step}"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "replace", failing(step))
            wrong = s.trained(out)
        left = list(out.rglob("*.part"))
        tally.add(group, f"rename {step}", wrong or left and f"left {left}")


# Two at once -----------------------------------------------------------------------------------

def belongs(folder):
    """What is wrong with a run folder, "" where its numbers are those of its prompts."""
    kept = told(folder / "result.json")
    if set(os.listdir(folder)) - {*data.OF_A_RUN, "evaluation"} or (folder / "state.pt").exists():
        return f"left {os.listdir(folder)}"
    with tempfile.TemporaryDirectory() as out:          # it compares sums of prompts and result
        done(folder, "--out", out, main=evaluate.main)
        found = told(Path(out) / "base-to-novel.json")["results"]
    if abs(found["base"]["accuracy"] - kept["base"]) > 1e-4:
        return f"{found['base']['accuracy']} now, {kept['base']} in the result"
    return ""


ONE, GRID = [*WORLD, "--out", "run"], [*WORLD, "--tau", "1", "0.05", "--out", "grid"]
PAIRS = {                                   # what two processes do, and how many runs there must be
    "same --out": (ONE, ONE, 1), "other seed, same --out": (ONE, [*ONE, "--seed", "2"], 1),
    "default names": (WORLD, WORLD, 1), "two grids": (GRID, GRID, 2),
    "evaluation beside": (ONE, ["before"], 2)}


def concurrent(tally, seed, cases, root):
    """Pairs of starts, some moments apart: every result belongs to its prompts."""
    rng = random.Random(seed)
    for i in range(cases):
        name = sorted(PAIRS)[i % len(PAIRS)]
        first, second, wanted = PAIRS[name]
        cwd, script = root / f"pair {i}", SCRIPT
        cwd.mkdir()
        if second == ["before"]:
            done(*WORLD, "--epochs", 1, "--out", cwd / "before")
            script = SCRIPT.with_name("evaluate.py")
        both = [started(first, cwd), started(second, cwd, script)]
        if rng.random() < 0.3:                          # one dies on the way
            time.sleep(rng.uniform(1, 6))
            both[1].kill()
        said = [process.communicate(timeout=300)[1] for process in both]
        codes, results = [process.returncode for process in both], list(cwd.rglob("result.json"))
        faults = [fault for path in results if (fault := belongs(path.parent))]
        faults += [text for text in said if "Traceback" in text]
        if len(results) < wanted - (codes[1] == -9) or set(codes) - {0, 2, -9} or (
                codes == [2, 2]):                       # both refused: neither was the other's
            faults.append(f"{len(results)} results, codes {codes}; {said}")
        tally.add("concurrent pairs", f"{name} {i}", "; ".join(faults))


# Kills -----------------------------------------------------------------------------------------

def stopped(words, root, script, seconds, by=signal.SIGKILL):
    """A process that gets a signal so much later -> its exit code, what it said."""
    process = started(words, root, script)
    time.sleep(seconds)
    process.send_signal(by)
    _, err = process.communicate()
    return process.returncode, err


def kills(tally, seed, cases, root):
    """A run killed at any moment of its life, `cases` times; a grid three times: the same bytes."""
    rng, words = random.Random(seed), [*WORLD, "--out", root / "run"]
    start = time.monotonic()
    started([*WORLD, "--out", root / "whole"], root).communicate()
    whole, life = run_files(root / "whole"), time.monotonic() - start
    child = root / "child.py"                           # keeps its state at each step
    child.write_text(f"import sys\nsys.path.insert(0, {str(SCRIPT.parent)!r})\nimport train\n"
                     "train.SAVE_SECONDS = -1\nsys.exit(train.main())\n")
    for i in range(cases):
        code, err = stopped(words, root, child, rng.uniform(0, life))
        right = "Traceback" not in err and code in (0, -9)
        if i == cases - 1 and not (root / "run/result.json").exists():
            right &= started(words, root).wait() == 0
        if (root / "run/result.json").exists():         # the rest of a cleaning may be missing
            kept = run_files(root / "run")
            right &= {name: kept.get(name) for name in whole} == whole
            shutil.rmtree(root / "run")
        tally.add("kills of a run", i, "" if right else f"other bytes, or {err}")
    for i in range(cases // 5 or 1):                    # from the first imports on
        name, asked = [("train.py", [*WORLD, "--out", root / "stopped"]),
                       ("evaluate.py", [root / "whole"]), ("data.py", ["world"])][i % 3]
        by = (signal.SIGINT, signal.SIGTERM)[i % 2]
        code, err = stopped(asked, root, SCRIPT.with_name(name), rng.uniform(0.15, life), by)
        right = code in (0, 128 + by, -by) and "Traceback" not in err
        tally.add("Ctrl-C and SIGTERM", f"{name} {i}", "" if right else f"{code}: {err}")
    words = [*WORLD, "--tau", "1", "0.05", "--seed", "1", "2", "--out"]
    started([*words, root / "alone"], root).communicate()
    for _ in range(3):
        stopped([*words, root / "grid"], root, child, rng.uniform(2, 7))
    started([*words, root / "grid"], root).communicate()
    grid = {n: v for n, v in files(root / "grid").items() if not n.endswith(".lock")}
    wrong = "" if grid == files(root / "alone") else "other bytes"
    tally.add("a grid killed three times", "files", wrong)


# The command line ------------------------------------------------------------------------------

PARTS = {                                   # how many cases by default; 0: all there are
    "mutations": (mutations, 1000), "commands": (commands, 1000), "degenerate": (degenerate, 0),
    "writers": (writers, 0), "concurrent": (concurrent, 20), "kills": (kills, 100)}


def run(argv=None):
    p = data.Parser(description="Use everything badly and count what comes of it.")
    p.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (all)")
    p.add_argument("--seed", type=data.SEED, default=1, help="of damage and moments (%(default)s)")
    numbers = ", ".join(f"{name} {n}" for name, (_, n) in PARTS.items() if n)
    p.add_argument("--cases", type=data.whole(1), help=f"of each part ({numbers})")
    args, tally = p.parse_args(argv), Tally()
    unknown = set(args.parts) - PARTS.keys()
    if unknown:
        raise ValueError(f"unknown part {min(unknown)}; expected {', '.join(PARTS)}")
    for name in args.parts or PARTS:
        part, cases = PARTS[name]
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            part(tally, args.seed, args.cases or cases, Path(folder))
        print(f"{name}: {time.monotonic() - start:.0f} s", file=sys.stderr)
    print(tally.table())
    return int(tally.bad.total() > 0)


if __name__ == "__main__":
    sys.exit(data.run_script(run))
