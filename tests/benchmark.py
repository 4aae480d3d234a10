"""Measures the tree of prompts.py against tests/textbook.py: speed.csv, the table of speed.md.

    python tests/benchmark.py                   # all cases; the textbook needs minutes and 18 GB
    python tests/benchmark.py --cases 0 1 4     # these only, by the numbers that --help lists
    python tests/benchmark.py --forms cut       # these forms only
    python tests/benchmark.py --page            # measures nothing: the table anew from speed.csv

    textbook   every prompt by itself with all 77 positions, every layer in full; float32
    cut        the same, all prompts cut behind the longest one's end token: the fair baseline
    fast       the tree, in each of --precisions
    graphed    on a GPU: the same, a training step's forward and backward as one CUDA graph

What is measured replaces its rows in assets/speed.csv; the others stay. ViT-B/16 with random
weights, class names of one to three words. On a CPU every measurement is a process of its own, so
that its peak memory is that of the whole process. A step is forward, Eq. (7), backward and SGD. An
evaluation is two of MaPLe's batches of 100 images, for each of which the baselines encode the texts
anew as the originals do (a longer test set gains more), or 8 images of CoCoOp, one by one as the
original has it; "images" is the image tower alone. The parts are one picture's way from a JPEG to
the device, by all cores, and a run's time beside its steps and images: of the first of a process,
of another one in a grid; assets/estimate.py adds them up. The commands are the training of whole
commands, on a CPU: the README's, for EuroSAT on pictures and weights made here. The floor is the
matrix products that no exact form can leave out at the rate that this machine reaches in one of
them. "kernels" is the time for which a GPU was busy.
"""
import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from functools import cache, partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import small_runs
import textbook

import clip_model
import data
import evaluate
import prompts
import train

CSV, PAGE = (Path(__file__).parents[1] / "assets" / name for name in ("speed.csv", "speed.md"))
COLUMNS = ["case", "form", "dtype", "seconds", "megabytes", "floor", "rate", "kernels", "launches",
           "torch", "processor", "note"]
SIZES = {"resolution": 224, "patch_size": 16, "vision_width": 768, "vision_layers": 12,
         "text_width": 512, "text_layers": 12, "vocab_size": 49408, "embed_dim": 512}   # ViT-B/16
CASES = [                                               # kind, method, classes, images
    ("step", "maple", 5, 4), ("step", "maple", 50, 4), ("step", "cocoop", 50, 1),
    ("step", "cocoop", 50, 4), ("step", "coop", 50, 32), ("evaluation", "cocoop", 50, 8),
    ("step", "maple", 500, 4), ("evaluation", "maple", 500, 200), ("step", "maple", 1000, 4),
    ("step", "cocoop", 500, 1), ("step", "cocoop", 500, 4), ("evaluation", "cocoop", 50, 80),
    ("evaluation", "cocoop", 500, 8), ("images", "coop", 1, 1000)]
TOO_LARGE = CASES[-6:-1]                                # the textbook form fits no laptop there
PARTS = [("decoding", 64), ("decoding", 500), ("start", "of a process"), ("start", "in a grid")]
COMMANDS = ["python train.py --method maple --npt --tau 0.01 --dataset world --epochs 5",
            "python train.py --method maple --npt --tau 0.01 --dataset eurosat"]
ALL = [*CASES, *((command,) for command in COMMANDS), *PARTS]
FORMS = ["textbook", "cut", "fast", "graphed"]
PRECISIONS = ["float32", "bfloat16", "float16"]


# What is measured ------------------------------------------------------------------------------

def class_names(K):
    """K different names of one, two, three, one, ... words: whole ones of CLIP's, none twice."""
    entries = [w.removesuffix("</w>") for w in clip_model.Tokenizer().ids if w.endswith("</w>")]
    words = (w for w in entries if len(w) > 5 and w.isascii() and w.isalpha())
    return [" ".join(next(words) for _ in range(1 + i % 3)) for i in range(K)]


def random_clip(device, dtype):
    """ViT-B/16 with small random weights, made in `dtype`: no float32 copy counts as memory."""
    with torch.device("meta"):
        shapes = clip_model.CLIP(**SIZES).state_dict()
    state = {name: (torch.randn(t.shape, device=device) * .02).to(dtype)
             for name, t in shapes.items()}
    for name in state:
        if "ln_" in name and name.endswith("weight"):
            state[name] = torch.ones_like(state[name])
    state["logit_scale"] = torch.tensor(4.6052, device=device)
    return clip_model.build(state)


WHOLE_PROMPTS = textbook.text_prompts


def cut_prompts(*args):
    """textbook.text_prompts, cut behind the longest prompt's end token: none sees a later one."""
    t, ends = WHOLE_PROMPTS(*args)
    return t[:, :int(ends.max()) + 1], ends


def learner_of(method, K, dtype, device):
    """A learner of K classes on a random ViT-B/16, always the same."""
    torch.manual_seed(0)
    clip = random_clip(device, getattr(torch, dtype))
    n_ctx, ctx_init = (prompts.DEFAULTS[method][name] for name in ("n_ctx", "ctx_init"))
    return prompts.build(method, clip, class_names(K), n_ctx=n_ctx, ctx_init=ctx_init)


def objective_of(learner):
    """Eq. (7) with the paper's weights."""
    return train.Objective(learner, argparse.Namespace(
        **train.WEIGHTS, reduction="mean", class_counts=[1], logit_adjust=False,
        balanced_mi=False))


def measure(kind, method, K, batch, form, dtype, device):
    """One measurement -> what time_of answers."""
    learner = learner_of(method, K, dtype, device)
    images = torch.randn(min(batch, 200), 3, 224, 224, device=device)
    y = torch.arange(len(images), device=device) % K
    forward = learner
    if form in FORMS[:2]:
        forward = learner.forward = partial(textbook.forward, learner)
    objective = objective_of(learner)
    if form == "graphed":
        objective = train.graphed(objective, batch)
    optimizer = torch.optim.SGD(prompts.trainable(learner).values(), lr=1e-3, momentum=.9)

    def step():
        loss, _ = objective(images, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    @torch.no_grad()
    def evaluation():
        if form == "fast":
            z = torch.cat([learner.image_features(x) for x in images.split(100)])
            evaluate.measure(learner, z, torch.zeros(len(z), dtype=torch.long, device=z.device))
        else:
            for x in images.split(1 if method == "cocoop" else 100):
                forward(x)

    @torch.no_grad()
    def image_tower():
        for n in range(0, batch, 100):
            learner.image_features(images[n % 200:][:100])

    jobs = {"step": step, "evaluation": evaluation, "images": image_tower}
    return time_of(jobs[kind], device)


def seconds_of(job, times=1, device="cpu"):
    """A call's seconds, the mean of so many."""
    start = time.perf_counter()
    for _ in range(times):
        job()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / times


def time_of(job, device):
    """-> {"seconds": the median, after a warm-up; on a GPU "kernels" and "launches" too}.

    A long job is measured once and is its warm-up.
    """
    seconds = seconds_of(job, 1, device)
    if seconds < 20:
        times = 8 if device == "cuda" else 1            # as in training: nothing waits in between
        again = 2 if seconds > 5 else 5
        seconds = statistics.median(seconds_of(job, times, device) for _ in range(again))
    if device != "cuda":
        return {"seconds": seconds}
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        seconds_of(job, 1, device)
    kernels = [e for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    return {"seconds": seconds, "kernels": sum(e.device_time_total for e in kernels) / 1e6,
            "launches": len(kernels)}


def measure_command(command, form, dtype, device):
    """{"seconds"} of the training alone of a whole command; runs in its own process."""
    took, training = [], train.train

    def timed(*args):
        start = time.perf_counter()
        answer = training(*args)
        took.append(time.perf_counter() - start)
        return answer

    train.train = timed
    if form != "fast":
        prompts.MaPLe.forward = textbook.forward
    with tempfile.TemporaryDirectory() as folder:
        words = [*command.split()[2:], "--precision", dtype, "--device", device,
                 "--out", f"{folder}/run"]
        if "eurosat" in words:
            small_runs.eurosat(Path(folder), split=True, n=15)
            clip_model.load = lambda name, device, dtype, *_: random_clip(device, dtype)
        with contextlib.redirect_stdout(sys.stderr):
            if train.main([*words, "--data-root", folder]):
                raise ValueError(f"{command} did not end well")
    return {"seconds": took[0]}


def measure_decoding(kind, size, form, dtype, device):
    """{"seconds"} for one test picture from the disk to the device, by all cores."""
    with tempfile.TemporaryDirectory() as folder:
        for i in range(64):
            small_runs.picture(i, size).save(f"{folder}/{i}.jpg", quality=90)
        n = 100 * (128000 // size // 100) if device == "cuda" else 400
        items = [(f"{i % 64}.jpg", 0) for i in range(n)]
        made = data.Dataset("made", ["a"], "{}", [], [], items, "", False, Path(folder))
        batches = iter(data.batches(made, items, 224, device))
        next(batches)
        start = time.perf_counter()
        for images, _ in batches:
            images.sum().item()
        return {"seconds": (time.perf_counter() - start) / (n - 100)}


def measure_start(kind, where, form, dtype, device):
    """{"seconds"} of a run with one step and ten test images: the first, or one more in a grid."""
    took = []
    with tempfile.TemporaryDirectory() as folder:
        small_runs.eurosat(Path(folder), split=True, n=15)
        torch.save({name: t.half().cpu() for name, t in random_clip("cpu", torch.float32)
                    .state_dict().items()}, f"{folder}/random.pt")
        for seeds in (["1"], ["1", "2"]):
            words = ["--dataset", "eurosat", "--data-root", folder, "--backbone",
                     f"{folder}/random.pt", "--method", "maple", "--npt", "--shots", "1",
                     "--epochs", "1", "--precision", dtype, "--device", device, "--seed", *seeds,
                     "--out", f"{folder}/{len(seeds)}"]
            took.append(seconds_of(partial(subprocess.run, [sys.executable, train.__file__, *words],
                                           check=True, capture_output=True)))
    more = took[1] - took[0]
    return {"seconds": more if where == "in a grid" else took[0] - more}


def peak_memory(device):
    """Of the whole process, in megabytes; on a GPU what torch took there."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2 ** 20
    import resource  # Windows has none

    units = 2 ** 20 if sys.platform == "darwin" else 2 ** 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / units


def measure_here(*case):
    """Seconds and megabytes of a case, form, precision and device."""
    textbook.text_prompts = cut_prompts if "cut" in case else WHOLE_PROMPTS
    if case[-1] == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    jobs = {"decoding": measure_decoding, "start": measure_start}
    jobs |= dict.fromkeys(COMMANDS, measure_command)
    found = jobs.get(case[0], measure)(*case)
    return found | {"megabytes": peak_memory(case[-1])}


def in_own_process(*case):
    """What measure_here(*case) answers in a new process."""
    command = [sys.executable, __file__, "--one", json.dumps(case)]
    answer = subprocess.run(command, capture_output=True, text=True)
    if answer.returncode:
        reason = (answer.stderr.strip() or f"ended with {answer.returncode}").splitlines()[-1]
        raise ValueError(f"measuring {title(case)}: {reason}")
    return json.loads(answer.stdout)


def matrix_rate(dtype):
    """Operations a second of one matrix product of the towers' size, the ceiling for any form."""
    a, b = (torch.randn(n, 768).to(dtype) for n in (800, 3072))
    return 2 * 800 * 768 * 3072 / min(seconds_of(lambda: a @ b.T) for _ in range(30))


@cache
def tree_nodes(K):
    """Tokens in the tree of K classes' prompts."""
    prompt_ids = [[0] * 7 + clip_model.prompt_ids(name + ".")[1:] for name in class_names(K)]
    return len({tuple(ids[:n + 1]) for ids in prompt_ids for n in range(len(ids))})


def floor_operations(kind, method, K, batch):
    """Operations in the linear layers that no exact form can leave out.

    These are all image tokens, and each name token once. A layer has 12 w^2 weights; of the last
    one, tokens that are not read need the 2 w^2 of keys and values only.
    """
    layers, nodes = 11 + 2 / 12, 0 if kind == "images" else tree_nodes(K)
    text = nodes * layers * 12 * 512 ** 2 * 2 * (batch if method == "cocoop" else 1)
    image = batch * 197 * layers * 12 * 768 ** 2 * 2
    if kind != "step":
        return text + image
    # backward: gradients of activations, not of weights; of images where their tower learns
    return 2 * text + (2 if method == "maple" else 1) * image


def processor(device):
    """This machine in words that give nothing else away."""
    if device == "cuda":
        return f"GPU, {torch.cuda.get_device_name()}"
    info = Path("/proc/cpuinfo")
    flags = info.read_text().split() if info.exists() else []
    words = torch.backends.cpu.get_cpu_capability().replace("AVX512", "AVX-512")
    if "avx512_bf16" in flags:
        words += " bfloat16"
    words += ", AMX" if "amx_bf16" in flags else ", no AMX"
    return f"{torch.get_num_threads()} CPU cores, {words}"


def kinds_of(case, args):
    """[(form, precision)] in which a case is measured."""
    if case in PARTS:
        return [("fast", args.precisions[0])]
    if case[0] in COMMANDS and args.device == "cuda":
        return []
    forms = ["textbook"] * (case not in TOO_LARGE) + ["cut"]
    kinds = [(form, "float32") for form in forms if case[0] != "images"]
    forms = ["fast"] + ["graphed"] * (args.device == "cuda" and case[0] == "step")
    kinds += [(form, dtype) for form in forms for dtype in args.precisions]
    return [kind for kind in kinds if kind[0] in args.forms]


def measured(case, args, rates):
    """The rows of one case, measured --rounds times by turns."""
    kinds, rows = kinds_of(case, args), []
    measure_one = measure_here if args.device == "cuda" else in_own_process
    rounds = [[measure_one(*case, *kind, args.device) for kind in kinds]
              for _ in range(args.rounds)]
    for (form, dtype), *same in zip(kinds, *rounds, strict=True):
        means = {name: statistics.mean(m[name] for m in same) for name in same[0]}
        row = dict.fromkeys(COLUMNS, "") | {
            "case": title(case), "form": form, "dtype": dtype,
            "torch": torch.__version__.split("+")[0],
            **{name: f"{value:.4g}" for name, value in means.items()},
            "megabytes": f"{means['megabytes']:.0f}", "processor": processor(args.device)}
        if case in CASES and form == "fast" and args.device == "cpu":
            row["floor"] = f"{floor_operations(*case) / rates[dtype]:.4g}"
            row["rate"] = f"{rates[dtype] / 1e9:.0f}"
        rows.append(row)
    return rows


# speed.csv and the table of speed.md -----------------------------------------------------------

TITLES = {"images": "image tower, {3} images", "decoding": "decoding of one JPEG, {1} pixels",
          "start": "a run without its steps and images, {1}", **dict.fromkeys(COMMANDS, "{}")}


def title(case):
    return TITLES.get(case[0], "{}, {}, {} classes, {} images").format(*case)


def key(row):
    """What a row is of, a GPU or not last: another with the same key replaces it."""
    return row["case"], row["form"], row["dtype"], row["processor"].startswith("GPU")


def save(rows):
    """speed.csv and the table of speed.md, the cases in the order of ALL."""
    order = [title(case) for case in ALL]
    rows = sorted((row for row in rows if row["case"] in order), key=lambda row: (
        key(row)[-1], order.index(row["case"]), FORMS.index(row["form"])))
    text = page(rows)
    data.write_csv(CSV, [COLUMNS, *([row[c] for c in COLUMNS] for row in rows)])
    data.write(PAGE, text)


def page(rows):
    """speed.md with its tables, and what belongs to them, of these rows; the prose as it stands."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    made = [n for n, line in enumerate(lines) if line.startswith(("| ", "- ", "  "))]
    at = {key(row): row for row in rows}
    here, there = ([row for row in rows if key(row)[-1] == gpu] for gpu in (False, True))
    tables = [drawn(table(at)), "", remarks(here), "", drawn(gpu_table(at)), "", gpu_remarks(there)]
    return "\n".join([*lines[:made[0]], *tables, *lines[made[-1] + 1:], ""])


def cell(row):
    """Seconds (floor), megabytes."""
    if row is None:
        return "not run"
    floor = f" ({float(row['floor']):.2f})" if row["floor"] else ""
    return f"{float(row['seconds']):.2f}{floor}, {row['megabytes']}"


def ratios(slow, fast):
    """The textbook's time and memory over those of the fast form."""
    if slow is None or fast is None:
        return ["-", "-"]
    return [f"{float(slow[unit]) / float(fast[unit]):.1f}x" for unit in ("seconds", "megabytes")]


def table(at):
    """Of the CPU, a line for each case: both baselines, float32 and bfloat16."""
    yield "case", "textbook", "cut", "float32", "time", "memory", "bfloat16", "time", "memory"
    for case in ALL[:-len(PARTS)]:
        name = title(case)
        slow, cut, exact = (at.get((name, form, "float32", False)) for form in FORMS[:3])
        half = at.get((name, "fast", "bfloat16", False))
        yield (f"training of `{name}`" if case[0] in COMMANDS else name,
               "-" if case in TOO_LARGE or case[0] == "images" else cell(slow),
               "-" if case[0] == "images" else cell(cut),
               cell(exact), *ratios(slow, exact), cell(half), *ratios(slow, half))


def gpu_table(at):
    """Of a GPU, a line for each case, in milliseconds; the floor at the image tower's rate."""
    yield ("on a GPU: ms", "textbook", "cut", "plain", "graphed", "kernels", "launches", "floor",
           "images/s")
    tower = at.get((title(CASES[-1]), "fast", "float16", True))
    for case in CASES:
        forms = [at.get((title(case), form, dtype, True))
                 for form, dtype in zip(FORMS, ["float32"] * 2 + ["float16"] * 2, strict=True)]
        best = forms[3] or forms[2]
        if best is None:
            yield title(case), *["not run"] * 8
            continue
        floor = "not run"
        if tower:
            share = floor_operations(*case) / floor_operations(*CASES[-1])
            floor = f"{1000 * share * float(tower['seconds']):.1f}"
        rate = "-" if case[0] == "step" else f"{case[-1] / float(best['seconds']):,.0f}"
        shown = [f"{1000 * float(row['seconds']):.1f}" if row else "-" for row in forms]
        yield (title(case), *shown, f"{1000 * float(best['kernels']):.1f}",
               f"{float(best['launches']):.0f}", floor, rate)


def drawn(rows):
    """Rows of words as a table of Markdown."""
    first, *others = rows
    lines = [first, ["---"] * len(first), *others]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def bullets(*lines):
    return "\n".join(textwrap.fill(line, 100, initial_indent="- ", subsequent_indent="  ",
                                   break_on_hyphens=False) for line in lines)


def places(rows):
    """Where the rows were measured; of several places which cases in each."""
    found = {}
    for row in rows:
        where = f"{row['processor']}, torch {row['torch']}"
        found.setdefault(where, {})[row["case"]] = None
    return "; ".join(where + f" ({', '.join(cases)})" * (len(found) > 1)
                     for where, cases in found.items())


def gpu_remarks(rows):
    """Which GPU it was, and what the columns are."""
    return bullets(
        f"{places(rows) or 'No GPU'}. Both baselines in float32, the others in float16. "
        '"kernels" is the time for which the GPU was busy; it and "launches" belong to the graphed '
        "form, else to the plain one. The floor is taken at the rate that the image tower reaches.")


def remarks(rows):
    """Where the rows were measured, at which rates the floors are taken, and notes on rows."""
    at = {dtype: dict.fromkeys(row["rate"] for row in rows if row["dtype"] == dtype and row["rate"])
          for dtype in PRECISIONS}
    rates = " and ".join(f"{' or '.join(found)} in {dtype}" for dtype, found in at.items() if found)
    return bullets(
        f"Measured on {places(rows)}. Memory is the peak of the whole process. Such machines are "
        "noisy.",
        "The floor is what the linear layers need at the rate of one large matrix product, "
        f"measured in the same run: billions of operations a second, {rates}.",
        *(f"{row['case']}, {row['form']}, {row['dtype']}: {row['note']}."
          for row in rows if row["note"]))


# The command line ------------------------------------------------------------------------------

def parse(argv=None):
    cases = "; ".join(f"{i} {title(case)}" for i, case in enumerate(ALL))
    p = data.Parser(description=__doc__.splitlines()[0],
                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--device", choices=["cpu", "cuda"],
                   default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--forms", nargs="+", choices=FORMS, default=FORMS)
    p.add_argument("--precisions", nargs="+", choices=PRECISIONS,
                   help="of the last two forms (float32 and bfloat16; on a GPU float16)")
    p.add_argument("--cases", nargs="+", type=data.whole(0, len(ALL) - 1), metavar="N",
                   default=list(range(len(ALL))), help=f"measure these only: {cases}")
    p.add_argument("--rounds", type=data.whole(1), default=2,
                   help="the forms take turns so often; the mean counts")
    p.add_argument("--page", action="store_true", help="only make the table from speed.csv")
    p.add_argument("--one", help=argparse.SUPPRESS)
    args = p.parse_args(argv)
    usual = {"cpu": PRECISIONS[:2], "cuda": ["float16"]}[args.device]
    args.precisions = list(dict.fromkeys(args.precisions or usual))
    clip_model.pick_device(args.device)
    return args


def run(args):
    if args.one:
        print(json.dumps(measure_here(*json.loads(args.one))))
        return
    rows = data.read_csv(CSV)
    if args.page:
        return save(rows)
    rates = {name: matrix_rate(getattr(torch, name)) for name in args.precisions}
    for case in [ALL[n] for n in sorted(set(args.cases))]:
        new = measured(case, args, rates)
        for row in new:
            print(f"{row['case']}, {row['form']} {row['dtype']}: {cell(row)} MB", flush=True)
        replaced = {key(row) for row in new}
        rows = [row for row in rows if key(row) not in replaced] + new
        save(rows)


def main(argv=None):
    return data.run_script(lambda: run(parse(argv)),
                           f"interrupted; finished cases are in {CSV.name}")


if __name__ == "__main__":
    sys.exit(main())
