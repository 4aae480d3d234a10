"""What Tables 1-4 cost on one GPU and on a CPU: an estimate, added up from the parts in speed.csv.

    python assets/estimate.py               # hours for three seeds, and what most of them go into

A run is its steps, its test images and, of CoCoOp, the texts of each of these; beside them the rest
of a run in a grid, and for each process one start. A time between measured numbers of classes lies
on a straight line. On a GPU test images cost the slower of decoding and image tower, which overlap;
on a CPU, whose cores do both, their sum. Pictures are taken as JPEG of 500 pixels, EuroSAT's of 64.
"""
import sys
from itertools import pairwise, product
from pathlib import Path

import numpy  # torchvision depends on it

sys.path.insert(0, str(Path(__file__).parents[1]))

import data
import evaluate
import train

CSV = Path(__file__).with_name("speed.csv")
TESTS = {           # dataset: test images, as in CoOp's splits
    "imagenet": 50000, "caltech101": 2465, "oxford_pets": 3669, "stanford_cars": 8041,
    "oxford_flowers": 2463, "food101": 30300, "fgvc_aircraft": 3333, "sun397": 19850,
    "dtd": 1692, "eurosat": 8100, "ucf101": 3783, "imagenetv2": 10000, "imagenet_sketch": 50889,
    "imagenet_a": 7500, "imagenet_r": 30000}
SEEDS = 3
PARTS = ("steps", "images", "texts", "starts")
METHODS = ("cocoop", "maple")


class Machine:
    """Seconds of the parts on one kind of machine, read from the rows of speed.csv."""

    def __init__(self, gpu, rows=None):
        self.gpu, self.found = gpu, {}
        kinds = [("fast", "float16"), ("graphed", "float16")] if gpu else [("fast", "float32")]
        for row in rows or data.read_csv(CSV):
            if row["processor"].startswith("GPU") == gpu and (row["form"], row["dtype"]) in kinds:
                seconds = float(row["seconds"])
                self.found[row["case"]] = min(seconds, self.found.get(row["case"], seconds))

    def step(self, method, K):
        known = [5, 50, 500, 1000] if method == "maple" else [50, 500]
        return on_lines(K, {k: self.found[f"step, {method}, {k} classes, 4 images"] for k in known})

    def text(self, K):
        """Of the K texts that CoCoOp has for one image."""
        few = self.found["evaluation, cocoop, 50 classes, 80 images"] / 80
        many = self.found["evaluation, cocoop, 500 classes, 8 images"] / 8
        return on_lines(K, {0: 0.0, 50: few, 500: many})

    def image(self, dataset):
        size = 64 if dataset == "eurosat" else 500
        tower = self.found["image tower, 1000 images"] / 1000
        decoding = self.found[f"decoding of one JPEG, {size} pixels"]
        return max(tower, decoding) if self.gpu else tower + decoding

    def start(self, where):
        return self.found[f"a run without its steps and images, {where}"]


def on_lines(K, known):
    """Seconds at K classes, on straight lines between those of {classes: seconds}."""
    numbers = sorted(known)
    a, b = next((pair for pair in pairwise(numbers) if pair[1] >= K), numbers[-2:])
    return known[a] + (known[b] - known[a]) * (K - a) / (b - a)


def vector(**seconds):
    return numpy.array([seconds.get(part, 0.0) for part in PARTS])


def steps(K, tau, epochs):
    """Steps of a training on K classes with up to 16 images each, in batches of 4."""
    return epochs * data.steps(sum(data.class_counts(K, tau=tau)), 4)


def run_of(method, machine, dataset, K, steps, parts=2):
    """One more run in a grid, by its parts: a training on K classes, and the test images."""
    training = vector(steps=steps * machine.step(method, K), starts=machine.start("in a grid"))
    return training + testing(machine, method, dataset, parts)


def testing(machine, method, dataset, parts=1):
    """A run on a dataset's test images; parts: into how many its classes are divided."""
    n = TESTS[dataset]
    if method == "maple":
        return vector(images=n * machine.image(dataset))
    return vector(texts=n * machine.text(data.ROWS[dataset].classes / parts))   # features are kept


def grid(machine, methods, taus, source=False):
    """Runs without and with NPT on the base classes of all datasets, for which zero-shot features
    are made once; or source runs, on all of ImageNet's."""
    whole = vector(starts=machine.start("of a process"))
    for dataset in ["imagenet"] if source else data.ALL:
        K = data.ROWS[dataset].classes
        if not source:
            K = -(-K // 2)
            whole += testing(machine, "maple", dataset)
        for method, tau in product(methods, taus):
            n = steps(K, tau, train.TRANSFER[method]["epochs"] if source else 5)
            whole += 2 * SEEDS * run_of(method, machine, dataset, K, n, parts=2 - source)
    return whole


def transfer(machine, methods, taus, task):
    """The finished source runs on a task's targets; zero-shot features once."""
    start, targets = vector(starts=machine.start("of a process")), evaluate.TASKS[task]
    whole = sum(testing(machine, "maple", target) for target in targets)
    for method in methods:
        one = start + sum(testing(machine, method, target) for target in targets)
        whole += 2 * SEEDS * len(taus) * one
    return whole


def tables(machine):
    """{what: seconds of its PARTS}."""
    tails, alone = (METHODS, (0.05, 0.01)), (["maple"], [0.01])
    tasks = ("cross-dataset", "domain-generalization")
    ablation = grid(machine, *alone) + grid(machine, *alone, source=True)
    return {
        "Table 1": grid(machine, METHODS, (1, 0.05, 0.01)),
        "source runs of Tables 2, 4": grid(machine, *tails, source=True),
        "Table 2": transfer(machine, *tails, tasks[0]),
        "Table 4": transfer(machine, *tails, tasks[1]),
        "Table 3": ablation + sum(transfer(machine, *alone, task) for task in tasks)}


def page(rows=None):
    """The table of reproducing.md, Markdown."""
    columns = []
    for gpu in (True, False):
        try:
            columns.append(tables(Machine(gpu, rows)))
        except KeyError:                                    # a part that speed.csv lacks
            columns.append({})
    lines = [["three seeds", "GPU, hours", "most of it", "CPU, hours", "most of it"], ["---"] * 5]
    for what in columns[0] | columns[1]:
        cells = [cell for column in columns for cell in hours(column.get(what))]
        lines.append([what, *cells])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def hours(found):
    """Seconds of the PARTS -> hours in all, and the part that most of them go into."""
    if found is None:
        return "not run", "-"
    whole, most = found.sum(), found.argmax()
    return f"{whole / 3600:.1f}", f"{PARTS[most]}, {found[most] / whole:.0%}"


def main(argv=None):
    parser = data.Parser(description="What Tables 1-4 cost, in hours: an estimate from speed.csv.")

    def job():
        parser.parse_args(argv)
        print(page())

    return data.run_script(job)


if __name__ == "__main__":
    sys.exit(main())
