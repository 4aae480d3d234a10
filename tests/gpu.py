"""What a GPU must show, with a verdict for each point: some five minutes on one card.

    python tests/gpu.py                 # all points; python tests/benchmark.py fills speed.md
    python tests/gpu.py --fit           # assets/estimate.py against a small grid, on a CPU too

ViT-B/16 with random weights, in --precision's float16; pictures made here. Steps and images a
second against goals for an H100; on another card only the differences are judged.
"""
import contextlib
import io
import itertools
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import benchmark
import small_runs

import clip_model
import data
import evaluate
import prompts
import train
from assets import estimate

GOALS = [                           # kind, method, classes, images, milliseconds on an H100
    ("step", "maple", 5, 4, 4.2), ("step", "maple", 500, 4, 7.5), ("step", "cocoop", 50, 4, 3.3)]
IMAGES_A_SECOND = 8000
HERE = Path(__file__).parent


def verdict(well, words):
    print(f"{'well    ' if well else 'NOT WELL'}  {words}", flush=True)


def tests():
    files = [str(HERE / name) for name in ("test_cuda.py", "test_golden.py")]
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-k", "cuda", *files],
                          capture_output=True, text=True, cwd=HERE.parent,
                          env={**os.environ, "TESTS_ON_A_GPU": "1"})
    print(done.stdout[-3000:] if done.returncode else "", end="")
    last = done.stdout.strip().splitlines()[-1]
    verdict(done.returncode == 0, f"tests on CUDA: {last}; {time.monotonic() - start:.0f} s")


def speed():
    h100 = "H100" in torch.cuda.get_device_name()
    for *case, goal in GOALS:
        plain = benchmark.measure_here(*case, "fast", "float16", "cuda")
        found = benchmark.measure_here(*case, "graphed", "float16", "cuda")
        took, busy = 1000 * found["seconds"], 1000 * found["kernels"]
        verdict(took <= 1.2 * busy and (took <= goal or not h100),
                f"{benchmark.title(tuple(case))}: {took:.2f} ms, {took / busy:.2f} times its "
                f"{found['launches']} kernels' {busy:.2f}; goal {goal} and 1.2; plain "
                f"{1000 * plain['seconds']:.1f}")
    found = benchmark.measure_here(*benchmark.CASES[-1], "fast", "float16", "cuda")
    rate = benchmark.CASES[-1][-1] / found["seconds"]
    verdict(rate >= IMAGES_A_SECOND or not h100, f"image tower: {rate:,.0f} images/s, kernels "
            f"{found['kernels'] / found['seconds']:.0%} of the time; goal {IMAGES_A_SECOND:,}")


def trained(learner, graph, steps):
    """-> losses of each step, and z, g and all gradients of the first."""
    torch.manual_seed(1)
    images, y = torch.randn(4, 4, 3, 224, 224, device="cuda"), torch.arange(4, device="cuda")
    learned, found = prompts.trainable(learner), []
    objective = benchmark.objective_of(learner)
    with torch.no_grad():
        _, z, g = learner(images[0])
    if graph:
        objective = train.graphed(objective, len(y))
    optimizer = torch.optim.SGD(learned.values(), lr=0.0035, momentum=0.9)
    for n in range(steps):
        loss, _ = objective(images[n % 4], y)
        optimizer.zero_grad()
        loss.backward()
        if n == 0:
            grads = torch.cat([p.grad.flatten() for p in learned.values()])
            first = [z, g, grads / grads.norm()]
        optimizer.step()
        found.append(loss.item())
    return torch.tensor(found), first, torch.cat([p.detach().flatten() for p in learned.values()])


def differences():
    """Graphed steps against plain ones, and each precision against float32, at ViT-B/16's size."""
    for method in ("coop", "cocoop", "maple"):
        exact = trained(benchmark.learner_of(method, 20, "float32", "cuda"), False, 1)[1]
        away = {}
        for dtype in ("float16", "bfloat16"):
            was, found = (trained(benchmark.learner_of(method, 20, dtype, "cuda"), graph, 20)
                          for graph in (False, True))
            loss, learned = ((a - b).abs().max().item() for a, b in zip(was[::2], found[::2],
                                                                        strict=True))
            away[dtype] = [(a - b).norm().item() / b.norm().item()
                           for a, b in zip(was[1], exact, strict=True)]
            verdict(loss < 0.02 * was[0].abs().max(), f"{method}, {dtype}: graphed and plain, 20 "
                    f"steps: loss within {loss:.1e} of {was[0][-1]:.3f}, learned {learned:.1e}")
        words = ["/".join(f"{x:.1e}" for x in pair) for pair in zip(*away.values(), strict=True)]
        better = all(a < b for a, b in zip(*away.values(), strict=True))
        verdict(better, f"{method}: float16/bfloat16 from float32, of their lengths: z {words[0]}, "
                        f"g {words[1]}, gradient {words[2]}")


def decoding():
    """Test pictures a second from the disk to the card, by all cores."""
    for size in (64, 500):
        seconds = benchmark.measure_here("decoding", size, "fast", "float16", "cuda")["seconds"]
        print(f"          decoding JPEG of {size} pixels: {1 / seconds:,.0f} images/s by "
              f"{data.cores()} cores")


def clock(runs, module, name):
    """Put a function's seconds into each run of a grid, and when it had ended first; train.run
    begins one."""
    function = getattr(module, name)

    def timed(*args, **options):
        start = time.monotonic()
        if name == "run":
            runs.append({"began": start})
        answer = function(*args, **options)
        if runs:                                        # a grid looks at its data before
            end, found = time.monotonic(), runs[-1]
            found[name] = found.get(name, 0) + end - start
            found.setdefault(f"until {name}", end - found["began"])
        return answer
    setattr(module, name, timed)


def grid(folder, device, tau, tested):
    """A grid on pictures of EuroSAT's shape: where a run's seconds go, and the estimate of them."""
    clip = benchmark.random_clip(device, clip_model.pick_precision("auto", torch.device(device)))
    clip_model.load = lambda *_: clip
    clip_model.fingerprint = lambda _: "random"
    small_runs.eurosat(folder, split=True, n=14 + tested)       # a class; 10 train, as many tested
    runs = []
    for module, name in ((data, "load"), (data, "check_pictures"), (prompts, "build"),
                         (train, "graphed"), (train, "train"), (train, "measure_parts"),
                         (evaluate, "measure"), (train, "run")):
        clock(runs, module, name)
    words = ["--dataset", "eurosat", "--data-root", folder, "--device", device, "--method",
             "cocoop", "maple", "--npt", "off", "on", "--tau", *tau, "--out", folder / "runs"]
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = train.main([str(word) for word in words])
    if code:
        print(said.getvalue()[-2000:])
        verdict(False, "a grid on EuroSAT's form")
        return
    columns = {"run": "whole", "until graphed": "before the first step", "graphed": "capture"}
    columns |= {name: name for name in ("load", "check_pictures", "build", "train",
                                        "measure_parts", "measure")}
    print(evaluate.table([("run", *columns.values()), *(
        (i, *(found.get(name, 0.0) for name in columns)) for i, found in enumerate(runs, 1))]))
    second = runs[1]["until graphed"]
    verdict(second < 1 or device == "cpu", f"the second of {len(runs)} runs takes its first step "
            f"after {second:.2f} s; goal 1 on a GPU")
    estimate.TESTS["eurosat"] = 10 * tested
    plan = list(itertools.product(("cocoop", "maple"), (False, True), map(float, tau)))
    try:
        expected = expected_of(plan, estimate.Machine(gpu=device == "cuda"))
    except KeyError as part:
        print(f"not run   the estimate: python tests/benchmark.py first, it lacks {part}")
        return
    for (method, _, t), seconds, found in list(zip(plan, expected, runs, strict=True))[1:]:
        print(f"          {method}, tau = {t:g}: {found['run']:.1f} s, estimated {seconds:.1f}")
    # the first run makes what all share
    whole, took = sum(expected[1:]), sum(found["run"] for found in runs[1:])
    verdict(2 / 3 < whole / took < 4 / 3,
            f"assets/estimate.py: {whole:.0f} s for {len(runs) - 1} runs that took {took:.0f}")


def expected_of(plan, machine):
    """What assets/estimate.py says of each run's seconds."""
    found = []
    for method, _, tau in plan:
        n = sum(min(10, count) for count in data.class_counts(5, tau=tau))
        parts = estimate.run_of(method, machine, "eurosat", 5, 5 * data.steps(n, 4))
        found.append(sum(parts))
    return found


def main():
    p = data.Parser(description=__doc__.splitlines()[0])
    p.add_argument("--fit", action="store_true",
                   help="only the estimate against a small grid, which a CPU can show too (6 min)")
    gpu, only = torch.cuda.is_available(), p.parse_args().fit
    if not gpu and not only:
        print("not run: this machine has no GPU; --fit needs none")
        return
    if gpu:
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    for part in () if only else (tests, speed, differences, decoding):
        part()
    with tempfile.TemporaryDirectory() as folder:
        if gpu:
            grid(Path(folder), "cuda", ["1", "0.01"], tested=810)
        else:
            grid(Path(folder), "cpu", ["0.01"], tested=40)


if __name__ == "__main__":
    sys.exit(data.run_script(main))
