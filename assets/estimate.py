"""What Tables 1-4 cost on one GPU and on a CPU: an estimate, added up from the parts in speed.csv.

    python assets/estimate.py               # hours for three seeds, and what most of them go into

A run is its steps, its test images and, of CoCoOp, the texts of each of these; beside them the rest
of a run in a grid, and for each process one start. A time between measured numbers of classes lies
on a straight line. On a GPU test images cost the slower of decoding and image tower, which overlap;
on a CPU, whose cores do both, their sum. Pictures are taken as JPEG of 500 pixels, EuroSAT's of 64.
"""
import sys
from itertools import pairwise
from pathlib import Path

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


def classes(dataset):
    return data.ROWS[dataset].classes


def steps(K, tau, epochs):
    """Steps of a training on K classes with up to 16 images each, in batches of 4."""
    return epochs * data.steps(sum(data.class_counts(K, tau=tau)), 4)


def run_of(method, machine, dataset, K, steps, parts=2):
    """One more run in a grid, by its parts: a training on K classes, and the test images."""
    return add({"steps": steps * machine.step(method, K), "starts": machine.start("in a grid")},
               testing(machine, method, dataset, parts))


def testing(machine, method, dataset, parts):
    """A run on a dataset's test images; parts: into how many its classes are divided."""
    n = TESTS[dataset]
    if method == "maple":
        return {"images": n * machine.image(dataset)}
    return {"texts": n * machine.text(classes(dataset) / parts)}    # their features are kept


def add(*found):
    return {part: sum(f.get(part, 0.0) for f in found) for part in PARTS}


def times(n, found):
    return {part: n * seconds for part, seconds in found.items()}


def base_to_novel(machine, methods, taus, variants):
    """All datasets: `variants` runs for each method, tau and seed; zero-shot features once."""
    found = [{"starts": machine.start("of a process")}]
    for dataset in data.ALL:
        found.append({"images": TESTS[dataset] * machine.image(dataset)})
        for method in methods:
            for tau in taus:
                K = -(-classes(dataset) // 2)
                one = run_of(method, machine, dataset, K, steps(K, tau, epochs=5))
                found.append(times(variants * SEEDS, one))
    return add(*found)


def source_runs(machine, methods, taus, variants):
    found = [{"starts": machine.start("of a process")}]
    for method in methods:
        for tau in taus:
            n = steps(1000, tau, train.TRANSFER[method]["epochs"])
            one = run_of(method, machine, "imagenet", 1000, n, parts=1)
            found.append(times(variants * SEEDS, one))
    return add(*found)


def transfer(machine, methods, runs, task):
    """`runs` finished runs of each method on a task's targets; zero-shot features once."""
    targets = evaluate.TASKS[task]
    found = [{"images": sum(TESTS[target] * machine.image(target) for target in targets)}]
    for method in methods:
        each = [testing(machine, method, target, parts=1) for target in targets]
        found.append(times(runs, add({"starts": machine.start("of a process")}, *each)))
    return add(*found)


def tables(machine):
    """{what: its seconds by parts}."""
    three, two = (1, 0.05, 0.01), (0.05, 0.01)
    runs = 2 * len(two) * SEEDS                 # of a method: without and with NPT, for each tau
    return {
        "Table 1": base_to_novel(machine, METHODS, three, 2),
        "source runs of Tables 2, 4": source_runs(machine, METHODS, two, 2),
        "Table 2": transfer(machine, METHODS, runs, "cross-dataset"),
        "Table 4": transfer(machine, METHODS, runs, "domain-generalization"),
        "Table 3": add(base_to_novel(machine, ["maple"], [0.01], 2),
                       source_runs(machine, ["maple"], [0.01], 2),
                       transfer(machine, ["maple"], 2 * SEEDS, "cross-dataset"),
                       transfer(machine, ["maple"], 2 * SEEDS, "domain-generalization"))}


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
    """Seconds by parts -> hours in all, and the part that most of them go into."""
    if found is None:
        return "not run", "-"
    most, whole = max(found, key=found.get), sum(found.values())
    return f"{whole / 3600:.1f}", f"{most}, {found[most] / whole:.0%}"


def main(argv=None):
    parser = data.Parser(description="What Tables 1-4 cost, in hours: an estimate from speed.csv.")
    return data.run_script(lambda: (parser.parse_args(argv), print(page()))[1])


if __name__ == "__main__":
    sys.exit(main())
