"""Uses everything badly, on purpose, and counts what comes of it.

    python tests/faults.py                      # all of it: some 25 minutes on one core
    python tests/faults.py mutations commands   # only these; --seed and --cases change the draw

Parts: mutations (damaged files), commands (bad command lines), degenerate (legal, tiny sets),
writers (full disk, read-only folder, devices), downloads, concurrent (two starts at once), kills
(and Ctrl-C).
A case is well if it is refused in one line with exit code 2, or if its numbers are those of the
undamaged files. Nothing leaves the machine: servers answer on the loopback.

tests/test_faults.py draws a few of the same cases.
"""
import contextlib
import errno
import functools
import gzip
import io
import json
import os
import random
import resource
import shutil
import signal
import stat
import subprocess
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
import benchmark
import test_weight_files
from conftest import hash_state
from small_runs import call, done, eurosat, files, write_classes
from test_runs import CHILD, SCRIPT, WORLD, run_files

import assets.files
import clip_model
import data
import evaluate
import train
from assets import (
    datasets,
    laboratory,
    make_bpe_merges,
    make_imagenet_names,
    train_tiny_clip,
    weight_files,
    world,
)

KINDS = ("clean or right", "plausible", "changed numbers", "traceback", "other")
LONGEST_LINE, SLOW = 1200, 25.0             # characters, seconds
WORDS = "a photo of forest river annual crop land highway cat dog fox . centered satellite"
LONG = "x" * 100_000


# What came of a case ---------------------------------------------------------------------------

def judged(main, words, numbers=None, right=None):
    """Run main(words) -> (one of KINDS, what was said).

    numbers  a function: what was computed, where the command ends well; `right` is what it must be
    """
    out, err, start = io.StringIO(), io.StringIO(), time.monotonic()
    try:
        with (contextlib.redirect_stdout(out), contextlib.redirect_stderr(err),
              warnings.catch_warnings()):
            warnings.simplefilter("always")
            code = main([str(word) for word in words])
    except SystemExit:
        return "other", f"argparse's own lines: {err.getvalue()}"
    except Exception:
        return "traceback", traceback.format_exc()
    said = err.getvalue().replace("\r", "\n").strip()
    lines = said.split("\n")
    if time.monotonic() - start > SLOW:
        return "other", f"{time.monotonic() - start:.0f} s: {said[-300:]}"
    if "Traceback" in said:
        return "traceback", said
    if "Warning" in said:
        return "other", said
    if code == 0:
        if numbers is None:
            return "other", "accepted"
        return ("clean or right", "") if numbers() == right else ("changed numbers", out.getvalue())
    one = sum(line.startswith("error: ") for line in lines) == 1 and lines[-1].startswith("error: ")
    if code == 2 and one and len(lines[-1]) < LONGEST_LINE:
        return "clean or right", lines[-1]
    return "other", f"code {code}: {said[:2000]}"


class Tally:
    """Counts of each group, and what went wrong."""

    def __init__(self):
        self.groups = {}

    def add(self, group, name, kind, said=""):
        if "see --help" in said and "command lines" not in group:
            kind = "other"                              # the case itself is wrong and shows nothing
        self.groups.setdefault(group, Counter())[kind] += 1
        if kind not in KINDS[:2]:
            print(f"--- {group}: {name}: {kind}\n{said[-1500:]}\n", file=sys.stderr, flush=True)

    def check(self, group, name, right, said=""):
        self.add(group, name, "clean or right" if right else "other", said)

    def table(self):
        rows = [("group", "cases", *KINDS)]
        rows += [(group, sum(count.values()), *(count[kind] for kind in KINDS))
                 for group, count in self.groups.items()]
        return evaluate.table(rows)

    @property
    def bad(self):
        return sum(n for count in self.groups.values() for kind, n in count.items()
                   if kind not in KINDS[:2])


# Damage ----------------------------------------------------------------------------------------

def bytes_damaged(raw, rng):
    """Some bytes -> (what was done, other bytes)."""
    raw, at = bytearray(raw), rng.randrange(len(raw))
    kind = rng.choice(["cut", "bit", "bits", "zeros", "insert", "delete", "append", "other"])
    if kind == "cut":
        raw = raw[:at]
    elif kind in ("bit", "bits"):
        for _ in range(1 if kind == "bit" else 30):
            raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    elif kind == "zeros":
        raw[at:at + 64] = bytes(len(raw[at:at + 64]))
    elif kind == "insert":
        raw[at:at] = rng.randbytes(rng.randint(1, 20))
    elif kind == "delete":
        del raw[at:at + rng.randint(1, 20)]
    elif kind == "append":
        raw += rng.randbytes(9)
    else:
        raw = rng.choice([b"", b"{}", b"[]", b"null", b"\0" * 50, b"\xff\xfe\xfa", b"a,b\n\n1",
                          b'{"a": NaN}', b"[" * 3000, b"\x89PNG\r\n\x1a\n", b"PK\3\4" * 20])
    return f"{kind} at {at}", bytes(raw)


def flip(tensor, rng, bit, times=1):
    """Bits of a float32 tensor flipped; 30 is the highest of the exponent, 31 the sign."""
    words = tensor.detach().clone().contiguous().view(torch.int32)
    flat = words.flatten()
    for _ in range(times):
        flat[rng.randrange(len(flat))] ^= (1 << bit) if bit < 31 else -2 ** 31
    return flat.view(torch.float32).reshape(tensor.shape)


def filled(value):
    def damage(tensor, rng):
        tensor = tensor.detach().float().clone()
        tensor.view(-1)[rng.randrange(tensor.numel())] = value
        return tensor
    return damage


IMPLAUSIBLE = {                             # of any kind of weights
    "exponent": lambda t, rng: flip(t, rng, 30), "nan": filled(torch.nan), "inf": filled(torch.inf),
    "1e30": filled(1e30), "-1e30": filled(-1e30), "integers": lambda t, _: t.long(),
    "complex": lambda t, _: t.to(torch.complex64), "bool": lambda t, _: t > 0,
    "sparse": lambda t, _: t.to_sparse(), "none": lambda t, _: None,
    "list": lambda t, _: t.tolist(),
    "words": lambda t, _: "words", "number": lambda t, _: 3, "dict": lambda t, _: {"a": t},
    "one more row": lambda t, _: torch.cat([t.reshape(t.shape or 1), t.reshape(t.shape or 1)]),
    "scalar": lambda t, _: torch.tensor([[1.0, 2.0]]), "empty": lambda t, _: torch.zeros(0),
    "meta": lambda t, _: t.to("meta"), "float8": lambda t, _: t.to(torch.float8_e5m2),
    "huge stride": lambda t, _: torch.zeros(1).expand(10 ** 9), "quantized": lambda t, _: (
        torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8)),
}
PLAUSIBLE = {                               # finite and of the right kind: only a sum can tell
    "signs": lambda t, rng: flip(t.float(), rng, 31, 300), "mantissa": lambda t, rng: (
        flip(t.float(), rng, 20)), "zeros": lambda t, _: torch.zeros_like(t),
    "half": lambda t, _: t.half(), "shuffled": lambda t, _: t.flip(0) if t.ndim else t * 0.9,
}
ODD = [None, "", "x", LONG, "../..", "/etc/passwd", "a\nb", "\x1b[31m", -1, 0, 1, 10 ** 6, 10 ** 30,
       1e308, float("nan"), float("inf"), True, [], [1], ["a"], [None], {}, {"a": 1}, b"x", "ViT-Z",
       "world_sketch", [0] * 5, [-1] * 5, [10 ** 30] * 5]


def tensors_damaged(tensors, rng, kinds):
    """Named tensors -> (what was done, the same with one damaged)."""
    name, kind = rng.choice(sorted(tensors)), rng.choice([*kinds, "gone", "more"])
    if kind == "gone":
        return f"{name} gone", {n: t for n, t in tensors.items() if n != name}
    if kind == "more":
        return "one more", tensors | {rng.choice(["x", LONG, ""]): torch.ones(3)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return f"{name}: {kind}", tensors | {name: kinds[kind](tensors[name], rng)}


def settings_damaged(content, rng, odd=None):
    """A dictionary -> (what was done, the same with one value lost or replaced)."""
    key, value = rng.choice(sorted(content)), rng.choice(odd or ODD)
    if rng.random() < 0.2:
        return f"{key} gone", {k: v for k, v in content.items() if k != key}
    return f"{key} = {str(value)[:40]}", content | {key: value}


def prompts_damaged(raw, rng):
    kind = rng.choice(["bytes", "tensors", "settings", "whole"])
    if kind == "bytes":
        return bytes_damaged(raw, rng)
    run = torch.load(io.BytesIO(raw), weights_only=True)
    if kind == "tensors":
        what, run["learned"] = tensors_damaged(run["learned"], rng, IMPLAUSIBLE | PLAUSIBLE)
    elif kind == "settings":
        what, run["settings"] = settings_damaged(run["settings"], rng)
    else:
        what, run = settings_damaged(run, rng)
    return what, weight_files.saved(run)


def weights_damaged(raw, rng, kinds=IMPLAUSIBLE):
    if rng.random() < 0.4:
        return bytes_damaged(raw, rng)
    state = torch.load(io.BytesIO(raw), weights_only=True)
    if rng.random() < 0.1:
        return "no state dict", weight_files.saved(rng.choice([None, [], 3, {"state_dict": 3}, {},
                                                             {3: 4}, {"a": None}, "words"]))
    what, state = tensors_damaged(state, rng, kinds)
    return what, weight_files.saved(state)


def json_damaged(raw, rng):
    kind = rng.choice(["bytes", "settings"])
    if kind == "bytes":
        return bytes_damaged(raw, rng)
    odd = [value for value in ODD if not isinstance(value, bytes)]
    what, content = settings_damaged(json.loads(raw), rng, odd)
    return what, json.dumps(content).encode()


def split_damaged(raw, rng):
    """A split file with one entry that can't be right."""
    if rng.random() < 0.3:
        return bytes_damaged(raw, rng)
    content = json.loads(raw)
    part = rng.choice(sorted(content))
    entry = rng.choice(content[part])
    what, value = rng.randrange(3), rng.choice(
        [v for v in ODD if not isinstance(v, bytes) and v not in (0, 1)])
    kind = rng.choice(["value", "entry", "twice", "list gone", "no list"])
    if kind == "value":
        entry[what] = value
    elif kind == "entry":
        content[part][content[part].index(entry)] = value
    elif kind == "twice":
        content[rng.choice(sorted(content))].append(entry)
    elif kind == "list gone":
        del content[part]
    else:
        content[part] = value
    return f"{part}: {kind} {str(value)[:40]}", json.dumps(content).encode()


def lines_damaged(raw, rng):
    """A CSV or names file: bytes, or a line that is empty, long, doubled or odd."""
    if rng.random() < 0.5:
        return bytes_damaged(raw, rng)
    lines = raw.decode().split("\n")
    odd = rng.choice(["", ",", "\t", '"', LONG * 2, "\0", "a,b,c,d", "..", '"a\nb",c', lines[-2]])
    lines.insert(rng.randrange(len(lines)), odd)
    return f"line {odd[:20]!r}", "\n".join(lines).encode()


def state_damaged(raw, rng):
    """state.pt of a killed run."""
    if rng.random() < 0.5:
        return bytes_damaged(raw, rng)
    state = torch.load(io.BytesIO(raw), weights_only=True)
    what, state = settings_damaged(state, rng)
    return what, weight_files.saved(state)


# Damaged files ---------------------------------------------------------------------------------

def small_weights(path):
    """A small CLIP that holds the vectors of a few words only."""
    state = hash_state(vl=1, tl=2)
    words = " ".join([WORDS, *datasets.EUROSAT.values()])
    ids = sorted({49406, 49407, *(i for word in words.split()
                                  for i in clip_model.prompt_ids(word))})
    state["token_embedding.words"] = torch.tensor(ids)
    state["token_embedding.weight"] = state["token_embedding.weight"][ids]
    torch.save(state, path)
    return path


class Subjects:
    """Finished runs whose files are damaged one at a time; each case starts from whole ones."""

    def __init__(self, root):
        self.root = root
        self.weights = small_weights(root / "clip.pt")
        eurosat(root / "data", split=True, n=16)
        self.split = root / "data" / "eurosat" / "split_zhou_EuroSAT.json"
        pets = write_classes(root / "pets", {
            f"{part}/{name}": n for part, n in (("train", 4), ("test", 3))
            for name in ("cat", "dog", "fox")})
        self.pictures = sorted((pets / "test").rglob("*.png"))
        self.names = root / "names.txt"
        self.names.write_text("cat\tcat\ndog\tdog\nfox\tfox\n")
        self.common = ["--method", "coop", "--n-ctx", 2, "--epochs", 1, "--shots", 4,
                       "--batch-size", 4, "--backbone", self.weights]
        self.satellite, self.own = root / "satellite", root / "own"
        self.own_words = [*self.common, "--dataset", pets, "--classnames", self.names]
        done(*self.common, "--dataset", "eurosat", "--data-root", root / "data", "--out",
             self.satellite)
        done(*self.own_words, "--out", self.own)
        self.right = {run: self.evaluated(run) for run in (self.satellite, self.own)}

    def numbers(self):
        return files(self.root / "evaluation")

    def evaluated(self, run):
        shutil.rmtree(self.root / "evaluation", ignore_errors=True)
        done(run, "--out", self.root / "evaluation", main=evaluate.main)
        return self.numbers()

    def judge(self, path, raw, run):
        """Evaluate a run while `path` holds other bytes."""
        whole = path.read_bytes()
        shutil.rmtree(self.root / "evaluation", ignore_errors=True)
        try:
            path.write_bytes(raw)
            return judged(evaluate.main, [run, "--out", self.root / "evaluation"], self.numbers,
                          self.right[run])
        finally:
            path.write_bytes(whole)
            shutil.rmtree(self.root / "features", ignore_errors=True)

    def killed(self):
        """A run that was killed in its middle, with its state; -> folder, words."""
        class Killed(BaseException):
            pass

        def add_or_die(log, *terms):
            add(log, *terms)
            if log.step == 2:
                raise Killed
        add, seconds = train.runs.Log.add, train.runs.SAVE_SECONDS
        words = [*self.own_words, "--out", self.root / "killed"]
        try:
            train.runs.Log.add, train.runs.SAVE_SECONDS = add_or_die, 0
            with contextlib.suppress(Killed):
                call(train.main, *words)
        finally:
            train.runs.Log.add, train.runs.SAVE_SECONDS = add, seconds
        return self.root / "killed", words

    def resumed(self, folder, words, raw):
        """Go on from a damaged state."""
        kept = run_files(folder)
        try:
            (folder / "state.pt").write_bytes(raw)
            return judged(train.main, words, lambda: (folder / "prompts.pt").read_bytes(),
                          (self.own / "prompts.pt").read_bytes())
        finally:
            shutil.rmtree(folder)
            folder.mkdir()
            for name, content in kept.items():
                (folder / name).write_bytes(content)


def mutations(tally, seed, cases, root):
    """Damaged files; `cases` of them in all."""
    rng, s = random.Random(seed), Subjects(root)
    groups = [
        ("prompts.pt", 25, s.satellite / "prompts.pt", s.satellite, prompts_damaged),
        ("backbone files", 20, s.weights, s.satellite, weights_damaged),
        ("backbone, plausible", 4, s.weights, s.satellite, functools.partial(
            weights_damaged, kinds=PLAUSIBLE)),
        ("result.json", 7, s.satellite / "result.json", s.satellite, json_damaged),
        ("run.json", 7, s.satellite / "run.json", s.satellite, json_damaged),
        ("split files", 10, s.split, s.satellite, split_damaged),
        ("drawn.csv", 10, s.satellite / "drawn.csv", s.satellite, lines_damaged),
        ("names files", 5, s.names, s.own, lines_damaged),
        ("pictures", 7, s.pictures[0], s.own, bytes_damaged),
    ]
    for group, share, path, run, damage in groups:
        for _ in range(max(1, share * cases // 100)):
            what, raw = damage(path.read_bytes(), rng)
            kind, said = s.judge(path, raw, run)
            if kind == "changed numbers" and group in ("backbone, plausible", "pictures"):
                kind = "plausible"
            tally.add(group, what, kind, said)
    folder, words = s.killed()
    for _ in range(max(1, 5 * cases // 100)):
        what, raw = state_damaged((folder / "state.pt").read_bytes(), rng)
        tally.add("state.pt", what, *s.resumed(folder, words, raw))


# Bad command lines -----------------------------------------------------------------------------

def command_lines():
    """(main, words): each must be refused."""
    train_words = """--method magic|--method|--tau 0|--tau nan|--tau x|--tau 1e-300|--shots 0|
        --shots 1.5|--shots 99999999999|--seed -1|--seed 4294967296|--seed 1e3|--epochs 0|
        --batch-size 0|--batch-size -3|--lr nan|--lr -1|--lr inf|--lr 1e300|--npt --w1 nan|
        --npt --w1 -1|--npt --w2 inf|--w1 1|--npt maybe|--method zeroshot --npt|--npt --ew 0|
        --npt --eh nan|--method zeroshot --epochs 3|--method coop --prompt-depth 2|--n-ctx 0|
        --n-ctx 1000000|--n-ctx 5 --ctx-init a|--prompt-depth 0|--prompt-depth 99|--class-specific|
        --dataset wrold|--dataset no/such|--dataset eurosat --data-root /nowhere|--classnames x|
        --dataset world --classnames x|--backbone ViT-Z|--backbone RN50|--backbone .|
        --backbone /etc/passwd|--device tpu|--precision int8|--out /etc/passwd|--out /|
        --out /dev/null|--out /etc|--test-images 0|--no-such 3|loose|--classes novel|
        --reduction max|--reduction sum|--ew 2|--dataset imagenetv2|--dataset {LONG}|
        --backbone {LONG}|--ctx-init {LONG}|--tau {LONG}|--method {LONG}|--{LONG}|--out {LONG}"""
    evaluate_words = """|no/such|/|/etc/passwd|run --table 5|run --table 1|run run|
        run --task magic|run --targets world|run --classnames x|run --image none.png|
        run --image x --task cross-dataset|run --image x --classes base|run --image x --table 1|
        run --image x --out y|run --format csv|run --format markdown|
        run --table 1 --task cross-dataset|
        run --table 1 --classes base|run --table 1 --targets world|run --table 1 --image x|
        run --task cross-dataset --classes base|run --device tpu|run --precision x|{LONG}|
        run --targets {LONG} --task cross-dataset|run --image {LONG}|run --table 1 --data-root x"""
    data_words = """wrold|no/such|world --shots 0|world --shots x|world --shots 1.5|world --seed -1|
        world --seed 4294967296|world --seed x|world --tau 0|world --tau 2|world --tau nan|
        world --tau x|world --classnames x|eurosat --data-root /nowhere|--no-such|world world|
        imagenet --data-root /nowhere --fetch|all --data-root /nowhere|{LONG}|
        world --shots {LONG}"""
    tiny_words = """--steps 0|--steps -1|--steps x|--batch-size 0|--pictures 1|--lr nan|--lr 0|
        --patch 5|--width 100|--seed -1|--out x.txt|--out gone/x.pt|--out /dev/null|--no-such|
        --embed-dim 0|--text-layers 0|--vision-layers -1|--out {LONG}.pt|--steps {LONG}"""
    bench_words = """--rounds 0|--cases 99|--cases -1|--precisions half|--device gpu|--cases x|
        --precisions float32 float32|--no-such|--rounds {LONG}"""
    world_words = "x.txt|gone/x.png|/dev/null|--no-such|a b|{LONG}.png"
    lab_words = "--seeds 1|--seeds 16|--seeds x|--processes 0|--no-such|--page --criteria"
    makers = [functools.partial(m.main, m.run, m.__doc__) if m is make_imagenet_names else
              functools.partial(make_imagenet_names.main, m.run, m.__doc__)
              for m in (make_imagenet_names, make_bpe_merges)]
    lines = [(train.main, train_words), (evaluate.main, evaluate_words), (data.main, data_words),
             (train_tiny_clip.main, tiny_words), (benchmark.main, bench_words),
             (world.main, world_words), (laboratory.main, lab_words),
             *((make, "--no-such|loose") for make in makers)]
    return [(main, [word.replace("{LONG}", LONG) for word in line.split()])
            for main, text in lines for line in text.split("|")]


def commands(tally, seed, cases, root):
    """Bad command lines, each in an empty folder that stays empty; `cases` at most."""
    lines = [(main, words) for main, words in command_lines() if words or main is evaluate.main]
    random.Random(seed).shuffle(lines)
    group_of = {train.main: "train.py", evaluate.main: "evaluate.py", data.main: "data.py"}
    with working_in(root):
        for main, words in lines[:cases]:
            kind, said = judged(main, words)
            if any(root.iterdir()):
                kind, said = "other", f"left {sorted(p.name for p in root.iterdir())} {said}"
                subprocess.run(["rm", "-r", *root.iterdir()], check=True)
            group = f"{group_of.get(main, 'assets/, benchmark.py')} command lines"
            tally.add(group, " ".join(words)[:90], kind, said)


@contextlib.contextmanager
def working_in(folder):
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


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
    for name, counts in sets.items():
        folder = write_classes(root / name, counts)
        for i, (words, more) in enumerate(options.items()):
            for method in ("coop", "cocoop", "maple"):
                if name.startswith("more") and (method == "cocoop" or i > 1):
                    continue
                out = root / f"{name} {words} {method}"
                kind, said = judged(train.main, [
                    "--method", method, "--n-ctx", 2, "--epochs", 2, "--dataset", folder, *more,
                    "--backbone", weights, "--out", out, "--shots", 2], lambda: 0, 0)
                if (out / "result.json").exists() and kind == "clean or right":
                    kind, said = judged(evaluate.main, [out], lambda o=out: json_kept(o), True)
                tally.add("degenerate sets", f"{name} {words} {method}", kind, said)


def json_kept(out):
    """Whether the files of an evaluation are JSON, which has no NaN."""
    constants = []
    for path in out.rglob("*.json"):
        json.loads(path.read_text(), parse_constant=constants.append)
    return not constants


# Full disk and the like ------------------------------------------------------------------------

@contextlib.contextmanager
def full_disk(size=100):
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
    mode, root = stat.S_IMODE(folder.stat().st_mode), os.geteuid() == 0
    try:
        folder.chmod(0o555)
        if root:
            os.seteuid(65534)
        yield
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(mode)


def device(path):
    """Something that is there and no plain file."""
    try:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    except OSError:
        os.mkfifo(path)
    return path


def as_main(write):
    """A function that writes, as a script that calls it."""
    return lambda words: assets.files.exit_code(lambda: write(*words))


def writers(tally, seed, cases, root):
    """Every writer on a full disk, in a read-only folder, and on what is no plain file."""
    root.chmod(0o755)
    s, rows = Subjects(root), benchmark.read_rows()
    table = [s.own, "--table", 1, "--out"]
    merges = gzip.compress(b"header\n" + b"a b\n" * make_bpe_merges.NUM_MERGES)

    def scripts_own(module, name, save):
        """A script that writes beside itself, sent to a folder; no wheel is fetched."""
        def write(path):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(module, name, Path(path))
                patch.setattr(make_bpe_merges, "read_from_wheel", lambda *_: (merges, "a wheel"))
                save()
        return as_main(write)

    every = {
        "write": (as_main(lambda path: assets.files.write(path, "x" * 1000)), []),
        "write_csv": (as_main(lambda path: assets.files.write_csv(path, [["x" * 1000]])), []),
        "evaluate.py --table": (evaluate.main, table),
        "world.py": (world.main, []),
        "train_tiny_clip.py": (train_tiny_clip.main, [
            "--steps", 1, "--pictures", 200, "--batch-size", 4, "--width", 64, "--text-layers", 1,
            "--vision-layers", 1, "--out"]),
        "make_bpe_merges.py": (scripts_own(make_bpe_merges, "TARGET", make_bpe_merges.run), []),
        "benchmark.py": (scripts_own(benchmark, "CSV", lambda: benchmark.save(rows)), []),
    }
    endings = {"world.py": ".png", "train_tiny_clip.py": ".pt"}
    for name, (main, words) in every.items():
        for way in ("full disk", "read-only", "device", "folder"):
            place = root / f"{name} {way}".replace(" ", "-")
            place.mkdir()
            target = place / f"x{endings.get(name, '.csv')}"
            guard = {"full disk": full_disk(), "read-only": read_only(place)}.get(
                way, contextlib.nullcontext())
            if way == "device":
                device(target)
            if way == "folder":
                target.mkdir()
            before = [(p.name, p.stat().st_mode) for p in place.iterdir()]
            with guard:
                kind, said = judged(main, [*words, target])
            if [(p.name, p.stat().st_mode) for p in place.iterdir()] != before:
                kind, said = "other", f"left {list(place.iterdir())}; {said}"
            tally.add("full disk and the like", f"{name}: {way}", kind, said)
    runs = {"train.py": (train.main, [*s.own_words, "--out"]),
            "evaluate.py": (evaluate.main, [s.own, "--out"])}
    for name, (main, words) in runs.items():
        for way in ("full disk", "read-only", "device", "folder in the way"):
            place = root / f"{name} {way}".replace(" ", "-")
            place.mkdir()
            target = place / "run"
            if way == "device":
                device(target)
            if way == "folder in the way":
                (target / ("run.json" if main is train.main else "all/per_class.csv")).mkdir(
                    parents=True)
            guard = {"full disk": full_disk(20), "read-only": read_only(place)}.get(
                way, contextlib.nullcontext())
            with guard:
                kind, said = judged(main, [*words, target])
            left = list(place.rglob("*.part"))
            if left or (target / "result.json").exists():
                kind, said = "other", f"left {left}"
            tally.add("full disk and the like", f"{name}: {way}", kind, said)
    out = root / "open"                                 # beside a run that one may only read
    out.mkdir()
    out.chmod(0o777)
    shutil.rmtree(root / "features", ignore_errors=True)
    with read_only(root):
        tally.add("full disk and the like", "a read-only run", *judged(
            evaluate.main, [s.own, "--out", out], lambda: files(out), s.right[s.own]))
    no_space = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    for step in range(1, 8):                            # the n-th rename of a run fails
        with pytest.MonkeyPatch.context() as patch:
            count, replace = [0], os.replace

            def failing(a, b, count=count, replace=replace, step=step):
                count[0] += 1
                if count[0] == step:
                    raise no_space
                replace(a, b)
            patch.setattr(os, "replace", failing)
            out = root / f"rename {step}"
            kind, said = judged(train.main, [*s.own_words, "--out", out],
                                lambda o=out: (o / "prompts.pt").read_bytes(),
                                (s.own / "prompts.pt").read_bytes())
        left = list(out.rglob("*.part"))
        tally.add("full disk and the like", f"rename {step}", "other" if left else kind, said)


# Downloads -------------------------------------------------------------------------------------

BREAKS = ["breaks", "breaks in chunks", "page", "other range", "no range", "no ranges, breaks",
          "503", "short", "stalls", "wrong", "404", "garbage", "nobody listens"]


@contextlib.contextmanager
def loopback(root):
    """tests/test_weight_files.py's server, and the download sent to it."""
    with pytest.MonkeyPatch.context() as patch:
        fixture = test_weight_files.server                # what is behind a pytest fixture
        steps = getattr(fixture, "__wrapped__", None) or fixture._get_wrapped_function()
        server = steps(root, patch)
        patch.setattr(weight_files, "TIMEOUT", 0.3)
        try:
            yield next(server), patch
        finally:
            next(server, None)


def downloads(tally, seed, cases, root):
    """A download that breaks, with and without a half one before, then goes on; and two at once."""
    whole = {"model.pt": test_weight_files.CONTENT}

    def fetch(argv):
        def job():
            weight_files.download(test_weight_files.SUM, "model.pt")
        return assets.files.exit_code(job)

    for mode in BREAKS[:cases]:
        for begun in (False, True):
            place = root / f"{mode} {begun}"
            with loopback(place) as (server, patch):
                before = test_weight_files.half() if begun else {}
                with patch.context() as inner:
                    server.mode = mode
                    if mode == "nobody listens":
                        inner.setattr(weight_files, "URL", "http://127.0.0.1:9")
                    kind, said = judged(fetch, [], lambda: True, True)
                if "model.pt" in test_weight_files.cached() and test_weight_files.cached() != whole:
                    kind, said = "other", "a wrong file has the final name"
                kept = test_weight_files.cached().get("model.part", b"")
                if begun and mode not in ("wrong",) and len(kept) < len(before["model.part"]) and (
                        test_weight_files.cached() != whole):
                    kind, said = "other", "half a download was lost"
                server.mode = ""
                code, _, err = call(fetch)
                if code and mode == "wrong":            # its bytes stand behind the half
                    code, _, err = call(fetch)
                if code or test_weight_files.cached() != whole:
                    kind, said = "other", f"does not go on: {err}"
            tally.add("downloads, one at a time", f"{mode}, begun {begun}", kind, said)
    for i in range(max(1, cases * 10 // len(BREAKS))):
        with loopback(root / f"two {i}") as (server, _):
            server.mode = ["slow", "", "no ranges"][i % 3]
            words = [sys.executable, "-c", test_weight_files.FETCH, weight_files.URL,
                     str(weight_files.CACHE), test_weight_files.SUM]
            both = [subprocess.Popen(words, cwd=SCRIPT.parent, text=True, stdout=subprocess.PIPE,
                                     stderr=subprocess.PIPE) for _ in range(2)]
            for process in both:
                process.stdout.readline()
            server.go.set()
            said = [process.communicate(timeout=60)[1] for process in both]
            well = not any(process.returncode for process in both)
            tally.check("downloads, two at once", i,
                        well and test_weight_files.cached() == whole, "".join(said))


# Two at once -----------------------------------------------------------------------------------

def started(words, cwd, script=SCRIPT):
    return subprocess.Popen([sys.executable, str(script), *map(str, words)], cwd=cwd, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            env={**os.environ, "OMP_NUM_THREADS": "1"})


def belongs(folder):
    """What is wrong with a run folder, "" where its numbers are those of its prompts."""
    learned = torch.load(folder / "prompts.pt", weights_only=True)["learned"]
    result = json.loads((folder / "result.json").read_text())
    if result["prompts_sha256"] != weight_files.checksum(learned):
        return "the result is not that of its prompts"
    if set(os.listdir(folder)) - {*assets.files.OF_A_RUN[:-1], "evaluation"}:
        return f"left {os.listdir(folder)}"
    with tempfile.TemporaryDirectory() as out:
        done(folder, "--out", out, main=evaluate.main)
        found = json.loads((Path(out) / "base-to-novel.json").read_text())["results"]
    if abs(found["base"]["accuracy"] - result["base"]) > 1e-4:
        return f"{found['base']['accuracy']} now, {result['base']} in the result"
    return ""


def pair(kind, cwd):
    """Start two processes of a kind at once -> them, and how many runs there must be."""
    one = [*WORLD, "--out", "run"]
    grid = [*WORLD, "--tau", "1", "0.05", "--epochs", "1", "--out", "grid"]
    if kind == "same --out":
        return [started(one, cwd), started(one, cwd)], 1
    if kind == "other seed, same --out":
        return [started(one, cwd), started([*one, "--seed", "2"], cwd)], 1
    if kind == "default names":
        return [started(WORLD, cwd), started(WORLD, cwd)], 2
    if kind == "two grids":
        return [started(grid, cwd), started(grid, cwd)], 2
    done(*WORLD, "--epochs", 1, "--out", cwd / "before")
    return [started(one, cwd), started(["before"], cwd, SCRIPT.with_name("evaluate.py"))], 2


PAIRS = ["same --out", "other seed, same --out", "default names", "two grids", "evaluation beside"]


def concurrent(tally, seed, cases, root):
    """Pairs of starts, some moments apart: every result belongs to its prompts."""
    rng = random.Random(seed)
    for i in range(cases):
        cwd = root / f"pair {i}"
        cwd.mkdir()
        both, wanted = pair(PAIRS[i % len(PAIRS)], cwd)
        if rng.random() < 0.3:                          # one dies on the way
            time.sleep(rng.uniform(1, 6))
            both[1].kill()
        said = [process.communicate(timeout=300)[1] for process in both]
        results = [path.parent for path in cwd.rglob("result.json")]
        faults = [fault for fault in map(belongs, results) if fault]
        faults += [text for text in said if "Traceback" in text]
        faults += [f"code {process.returncode}: {text}" for process, text in
                   zip(both, said, strict=True) if process.returncode not in (0, 2, -9)]
        killed = both[1].returncode == -9
        if len(results) < wanted - killed or (both[0].returncode and both[1].returncode):
            faults.append(f"{len(results)} results; {said}")
        tally.check("concurrent pairs", f"{PAIRS[i % len(PAIRS)]} {i}", not faults,
                    "; ".join(faults))


# Kills -----------------------------------------------------------------------------------------

def kills(tally, seed, cases, root):
    """A run killed at any moment of its life, `cases` times; a grid three times: the same bytes."""
    rng, child = random.Random(seed), CHILD.format(root=str(SCRIPT.parent), kind="never", number=0)
    start = time.monotonic()
    done(*WORLD, "--out", root / "whole")
    whole, life = run_files(root / "whole"), time.monotonic() - start + 4.0
    for i in range(cases):
        process = subprocess.Popen([sys.executable, "-c", child, *WORLD, "--out", root / "run"],
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                   env={**os.environ, "OMP_NUM_THREADS": "1"})
        time.sleep(rng.uniform(0, life))
        process.kill()
        _, err = process.communicate()
        ended = (root / "run" / "result.json").exists()
        right = "Traceback" not in err and process.returncode in (0, -9)
        if i == cases - 1 and not ended:
            done(*WORLD, "--out", root / "run")
            ended = True
        if ended:                                       # the rest of a cleaning may be missing
            kept = run_files(root / "run")
            right &= {name: kept.get(name) for name in whole} == whole
            shutil.rmtree(root / "run")
        tally.check("kills of a run", i, right, err)
    for i in range(cases // 5 or 1):                    # from the first imports on
        name = ("train.py", "evaluate.py", "data.py")[i % 3]
        asked = {"train.py": [*WORLD, "--out", root / "stopped"], "evaluate.py": [root / "whole"],
                 "data.py": ["world"]}[name]
        process = started(asked, root, SCRIPT.with_name(name))
        time.sleep(rng.uniform(0.15, life))
        process.send_signal(signal.SIGTERM if i % 2 else signal.SIGINT)
        _, err = process.communicate()
        right = process.returncode in (0, 130, 143, -signal.SIGINT, -signal.SIGTERM)
        finished = "holds a finished run" in err        # an earlier one came to its end
        tally.check("Ctrl-C and SIGTERM", f"{name} {i}", "Traceback" not in err and (
            right or finished), f"{process.returncode}: {err}")
    words = [*WORLD, "--epochs", "2", "--tau", "1", "0.05", "--seed", "1", "2", "--out"]
    done(*words, root / "alone")
    for _ in range(3):
        process = started([*words, root / "grid"], root)
        time.sleep(rng.uniform(2, 7))
        process.kill()
        process.communicate()
    done(*words, root / "grid")
    tables = [done("--table", 1, root / name, main=evaluate.main) for name in ("alone", "grid")]
    tally.check("a grid killed three times", "files",
                {n: v for n, v in files(root / "grid").items() if not n.endswith(".lock")}
                == files(root / "alone") and tables[0] == tables[1])


# The command line ------------------------------------------------------------------------------

PARTS = {                                   # how many cases by default; 0: all there are
    "mutations": (mutations, 1000), "commands": (commands, 1000), "degenerate": (degenerate, 0),
    "writers": (writers, 0), "downloads": (downloads, len(BREAKS)), "concurrent": (concurrent, 20),
    "kills": (kills, 100),
}


def parse(argv=None):
    p = assets.files.Parser(description="Use everything badly and count what comes of it.")
    p.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (all)")
    p.add_argument("--seed", type=assets.files.seed, default=1,
                   help="of damage and moments (%(default)s)")
    numbers = ", ".join(f"{name} {n}" for name, (_, n) in PARTS.items() if n)
    p.add_argument("--cases", type=assets.files.whole(1), help=f"of each part ({numbers})")
    args = p.parse_args(argv)
    unknown = set(args.parts) - PARTS.keys()
    if unknown:
        raise ValueError(f"unknown part {min(unknown)}; expected {', '.join(PARTS)}")
    return args


def run(args):
    torch.set_num_threads(1)
    tally = Tally()
    for name in args.parts or PARTS:
        part, cases = PARTS[name]
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            part(tally, args.seed, args.cases or cases, Path(folder))
        print(f"{name}: {time.monotonic() - start:.0f} s", file=sys.stderr)
    print(tally.table())
    return int(tally.bad > 0)


if __name__ == "__main__":
    sys.exit(assets.files.exit_code(lambda: run(parse())))
