"""Measures the fast form against the textbook form (tests/textbook.py) on this machine, in one run, and prints ratios.

    python tests/benchmark.py                   # the table of the README; the textbook needs minutes and 18 GB
    python tests/benchmark.py --skip-large      # without the rows of 500 and more classes

ViT-B/16 with random weights, class names of one to three words. Every measurement is a process of its own, so that its
peak memory is that of the whole process. The textbook runs in float32; the fast form in the precision of the column. A
step is forward, Eq. (7), backward and SGD. An evaluation is two of MaPLe's batches of 100 images, for each of which the
textbook encodes the texts anew as the originals do (a longer test set gains more), or 8 images of CoCoOp, one by one as the
original has it. The last rows are the training of whole commands: the README's, for EuroSAT on pictures and weights made
here. The floor is the matrix products that no exact form can leave out at the rate that this machine reaches in one of them.
"""
import argparse
import contextlib
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import clip_model  # noqa: E402
import evaluate  # noqa: E402
import losses  # noqa: E402
import prompts  # noqa: E402
import small_runs  # noqa: E402
import textbook  # noqa: E402
import train  # noqa: E402

SIZES = dict(resolution=224, patch_size=16, vision_width=768, vision_layers=12, text_width=512, text_layers=12,
             vocab_size=49408, embed_dim=512)                       # ViT-B/16
CASES = [                                                           # method, classes, batch, also without the textbook
    ("step", "maple", 5, 4), ("step", "maple", 50, 4), ("step", "cocoop", 50, 1), ("step", "cocoop", 50, 4),
    ("step", "coop", 50, 32), ("evaluation", "cocoop", 50, 8), ("step", "maple", 500, 4),
    ("evaluation", "maple", 500, 200), ("step", "maple", 1000, 4), ("step", "cocoop", 500, 1)]
FAST_ONLY = CASES[-2:]                                              # the textbook form does not fit a laptop there
COMMANDS = ["python train.py", "python train.py --method maple --npt --tau 0.01 --dataset eurosat"]


def class_names(K):
    """K different names of one, two, three, one, ... words, no word twice: whole words of CLIP's own vocabulary."""
    words = [w[:-4] for w in clip_model.Tokenizer().ids if w.endswith("</w>") and len(w) > 9 and w[:-4].isascii()
             and w[:-4].isalpha()]
    words = iter(words)
    return [" ".join(next(words) for _ in range(1 + i % 3)) for i in range(K)]


def random_clip(device, dtype):
    """ViT-B/16 with small random weights, made in `dtype` at once, so that no float32 copy counts as memory."""
    with torch.device("meta"):
        shapes = clip_model.CLIP(**SIZES).state_dict()
    state = {name: (torch.randn(t.shape, device=device) * .02).to(dtype) for name, t in shapes.items()}
    for name in state:
        if "ln_" in name and name.endswith("weight"):
            state[name] = torch.ones_like(state[name])
    state["logit_scale"] = torch.tensor(4.6052, device=device)
    return clip_model.build(state)


def measure(kind, method, K, batch, form, dtype, device):
    """One measurement -> {"seconds", "megabytes"}; runs in its own process."""
    torch.manual_seed(0)
    clip = random_clip(device, getattr(torch, dtype))
    n_ctx = {"maple": 2, "cocoop": 4, "coop": 16}[method]
    learner = prompts.build(method, clip, class_names(K), n_ctx=n_ctx, ctx_init=None if method == "coop" else "a photo of a")
    images, y = torch.randn(batch, 3, 224, 224, device=device), torch.arange(batch, device=device) % K
    forward = learner if form == "fast" else lambda images: textbook.forward(learner, images)
    optimizer = torch.optim.SGD(prompts.trainable(learner).values(), lr=1e-3, momentum=.9)

    def step():
        logits, z, g = forward(images)
        loss, _ = losses.npt_loss(logits, z, g, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    @torch.no_grad()
    def evaluation():
        size = 1 if method == "cocoop" else 100
        if form == "fast":
            z, labels = evaluate.image_features(learner, [(x, torch.zeros(len(x), dtype=torch.long))
                                                          for x in images.split(100)])
            evaluate.measure(learner, z, labels)
        else:
            for x in images.split(size):
                forward(x)

    def timed(job):
        start = time.perf_counter()
        job()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    job = step if kind == "step" else evaluation
    first = timed(job)                                              # a warm-up, but of a long job the measurement
    seconds = [first] if first > 20 else [timed(job) for _ in range(2 if first > 5 else 5)]
    return {"seconds": statistics.median(seconds), "megabytes": peak_memory(device)}


def measure_command(command, form, dtype, device):
    """Training alone of a whole command -> {"seconds", "megabytes"}; runs in its own process."""
    took, training = [], train.train

    def timed(*args):
        start = time.perf_counter()
        answer = training(*args)
        took.append(time.perf_counter() - start)
        return answer

    train.train = timed
    if form == "textbook":
        prompts.MaPLe.forward = textbook.forward
    with tempfile.TemporaryDirectory() as folder:
        words = [*command.split()[2:], "--precision", dtype, "--device", device, "--out", f"{folder}/run"]
        if "eurosat" in words:
            small_runs.eurosat(Path(folder), split=True, n=15)
            clip_model.load = lambda name, device, dtype: random_clip(device, dtype)
        else:
            words += ["--npt", "--tau", "0.01"]                     # what the bare command means
        with contextlib.redirect_stdout(sys.stderr):
            train.run(train.parse([*words, "--data-root", folder]))
    return {"seconds": took[0], "megabytes": peak_memory(device)}


def peak_memory(device):
    """Of the whole process, in megabytes; on a GPU what torch took there."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2 ** 20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2 ** 20 if sys.platform == "darwin" else 2 ** 10)


def in_own_process(*case):
    """What measure(*case) or measure_command(*case) answers in a new process."""
    answer = subprocess.run([sys.executable, __file__, "--one", json.dumps(case)], capture_output=True, text=True)
    if answer.returncode:
        raise SystemExit(f"{case}: {answer.stderr.strip().splitlines()[-1]}")
    return json.loads(answer.stdout)


def matrix_rate(dtype, device):
    """Operations a second of one matrix product of the towers' size, the ceiling for any form."""
    a, b = (torch.randn(n, 768, device=device).to(dtype) for n in (800, 3072))
    times = []
    for _ in range(30):
        start = time.perf_counter()
        a @ b.T
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return 2 * 800 * 768 * 3072 / min(times)


def floor_operations(kind, method, K, batch):
    """Operations in the linear layers that no exact form can leave out: image tokens, and each name token once.

    A layer has 12 w^2 weights; of the last one, tokens that are not read need the 2 w^2 of keys and values only.
    """
    nodes = len({tuple(ids[:n + 1]) for name in class_names(K)
                 for ids in [[0] * 7 + clip_model.prompt_ids(name + ".")[1:]] for n in range(len(ids))})
    layers = 11 + 2 / 12
    text = nodes * layers * 12 * 512 ** 2 * 2 * (batch if method == "cocoop" else 1)
    image = batch * 197 * layers * 12 * 768 ** 2 * 2
    if kind == "evaluation":
        return text + image
    return 2 * text + (2 if method == "maple" else 1) * image       # backward: gradients of activations, not of weights


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"])
    p.add_argument("--skip-large", action="store_true", help="leave out 500 and more classes")
    p.add_argument("--rounds", type=int, default=2, help="textbook and fast forms take turns so often; the mean counts")
    p.add_argument("--one", help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.one:
        case = json.loads(args.one)
        print(json.dumps((measure_command if case[0] in COMMANDS else measure)(*case)))
        return
    rates = {dtype: matrix_rate(getattr(torch, dtype), args.device) for dtype in args.precisions}
    print(f"torch {torch.__version__}, {args.device}, {torch.get_num_threads()} threads; matrix products: "
          + ", ".join(f"{dtype} {rate / 1e9:.0f} GFLOP/s" for dtype, rate in rates.items()) + "\n")
    line = lambda cells: print("| " + " | ".join(cells) + " |", flush=True)
    line(["seconds (floor), MB", "textbook"] + [c for dtype in args.precisions for c in (dtype, "time", "memory")])
    line(["---"] * (2 + 3 * len(args.precisions)))
    for case in [*CASES, *((command,) for command in COMMANDS)]:
        if args.skip_large and case in CASES and case[2] >= 500:
            continue
        forms = [("fast", dtype) for dtype in args.precisions]
        forms = forms if case in FAST_ONLY else [("textbook", "float32"), *forms]
        found = [[in_own_process(*case, *form, args.device) for form in forms] for _ in range(args.rounds)]
        fast = [{unit: statistics.mean(m[unit] for m in same) for unit in same[0]} for same in zip(*found)]
        slow = None if case in FAST_ONLY else fast.pop(0)
        cells = ["training of `" + case[0] + "`" if case[0] in COMMANDS else "{}, {}, {} classes, {} images".format(*case),
                 f"{slow['seconds']:.2f}, {slow['megabytes']:.0f}" if slow else "-"]
        for dtype, mean in zip(args.precisions, fast):
            floor = f" ({floor_operations(*case) / rates[dtype]:.2f})" if case in CASES else ""
            cells += [f"{mean['seconds']:.2f}{floor}, {mean['megabytes']:.0f}",
                      *(f"{slow[unit] / mean[unit]:.1f}x" if slow else "-" for unit in ("seconds", "megabytes"))]
        line(cells)


if __name__ == "__main__":
    main()
