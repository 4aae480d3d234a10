"""Train as train.py does, and measure the training images after each epoch.

    python assets/history.py --method maple --npt --tau 0.01        # train.py's options, one run

Leaves history.csv in the run's folder, a row an epoch, on the training images uncropped: accuracy
in per cent, Definitions 2 and 3, L_LC's two parts, the three collapses of Sec. 3.2, and Remark 2's
weights of each class k, cohesion_k and repulsion_k. The run itself is train.py's, bit for bit, and
a killed one goes on.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import data
import evaluate
import losses
import train

HISTORY = ("delta_lcd", "lc_shared", "lc_unequal", "delta_mid", "feature_collapse",
           "prototype_collapse", "classifier_collapse", "accuracy")


def watch(learner, dataset, items, step, folder):
    """Add a row to history.csv in place of what a killed run had from this step on."""
    z, y = evaluate.image_features(learner, dataset, items)
    numbers, p = evaluate.measure(learner, z, y)
    found = {name: numbers[name] for name in HISTORY}
    for name, weights in zip(("cohesion", "repulsion"), losses.cohesion_repulsion(p, y.cpu()),
                             strict=True):
        found |= {f"{name}_{k}": weight for k, weight in enumerate(weights.tolist())}
    path, settings = folder / "history.csv", train.read_json(folder / "run.json")
    epoch = step // data.steps(len(items), settings["batch_size"]) - 1
    earlier = data.read_csv(path) if path.is_file() else []
    rows = [tuple(kept.values()) for kept in earlier if int(kept["step"]) < step]
    data.write_csv(path, [("epoch", "step", *found), *rows,
                          (epoch, step, *(f"{value:.6g}" for value in found.values()))])


def main(argv=None):
    def job():
        plan = train.parse(argv)
        if len(plan) > 1:
            raise ValueError("history.py makes one run: give each option one value")
        train.run_alone(plan[0], watch)

    return data.run_script(job, "interrupted; the same command goes on where it stopped")


if __name__ == "__main__":
    sys.exit(main())
