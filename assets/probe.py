"""What a simple classifier does with a run's pictures: two of them, beside zero-shot and the run.

    python assets/probe.py RUN

Nearest class mean and a linear probe learn from the frozen features z (N, d) of the run's own
training pictures, uncropped, and their labels y (N,), by no class name and without chance.
"""
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))
import data
import evaluate
import prompts

STRENGTHS, FOLDS = [0.1, 1, 10, 100, 1000, 10_000], 5       # C of the linear probe, chosen from


def nearest_mean(z, y, K, tests):
    """Labels of the tests: the class whose mean of z is nearest."""
    means = torch.stack([z[y == k].mean(dim=0) for k in range(K)])
    return torch.cdist(tests, means).argmin(dim=1)


def linear_probe(z, y, K, C):
    """Logistic regression: W (K, d), b (K,) of least |W|^2 / 2 + C sum_n -log p(y_n | z_n), where
    p = softmax(W z + b), to convergence by LBFGS on float64; ValueError where that fails."""
    centre = z.mean(dim=0)          # in b, which is not penalised, it changes no p and saves steps
    W, b = (torch.zeros(size, dtype=z.dtype).requires_grad_() for size in ((K, z.shape[1]), K))
    optimizer = torch.optim.LBFGS([W, b], max_iter=5000, max_eval=20000, tolerance_grad=1e-8,
                                  tolerance_change=0, line_search_fn="strong_wolfe")

    def objective():                                        # divided by C N
        optimizer.zero_grad()
        loss = W.square().sum() / (2 * C * len(z)) + F.cross_entropy((z - centre) @ W.T + b, y)
        loss.backward()
        return loss

    optimizer.step(objective)
    objective()
    if not max(W.grad.abs().max(), b.grad.abs().max()) < 1e-6:
        raise ValueError(f"the linear probe has not converged at C = {C:g}")
    return W.detach(), (b - W @ centre).detach()


def choose_strength(z, y, K):
    """The C under which held-out training images are most probable: of a class the i-th is held
    out in fold i mod 5, the only one never."""
    fold = torch.tensor([int((y[:i] == k).sum()) % FOLDS for i, k in enumerate(y)])
    fold[torch.bincount(y)[y] == 1] = FOLDS
    losses = dict.fromkeys(STRENGTHS, 0.0)
    for out in (fold == f for f in fold.unique() if f < FOLDS):
        for C in STRENGTHS:
            W, b = linear_probe(z[~out], y[~out], K, C)
            losses[C] += F.cross_entropy(z[out] @ W.T + b, y[out], reduction="sum").item()
    return min(STRENGTHS, key=losses.get)


def run(args):
    learner, settings = evaluate.load_run(args.run, *evaluate.machine(args),
                                          backbone=args.backbone)
    dataset = evaluate.load_dataset(args.run, settings, args.data_root)
    labels, path = evaluate.parts_of(dataset)[settings["classes"]], args.run / "drawn.csv"
    drawn, n = evaluate.read_drawn(path) if path.is_file() else (), sum(settings["class_counts"])
    items = [item for item in data.select(dataset.train, labels) if item[0] in drawn]
    if not items or len(items) != n:
        raise ValueError(f"{args.run} trained on {n} pictures; {len(items)} are here: expected all")
    frozen, K = evaluate.FrozenFeatures(dataset, args.run.parent / "features"), len(labels)
    zeroshot = prompts.build("zeroshot", learner.clip, learner.classnames,
                             ctx_init=dataset.template)
    z, y = evaluate.image_features(zeroshot, dataset, items, "training images")
    tests, truth = frozen.of(zeroshot, labels)
    z, tests, y, truth = z.cpu().double(), tests.cpu().double(), y.cpu(), truth.cpu()
    C = choose_strength(z, y, K)
    W, b = linear_probe(z, y, K, C)
    found = {"zero-shot": evaluate.score(zeroshot, dataset, labels, frozen)[1].argmax(dim=1),
             "nearest class mean": nearest_mean(z, y, K, tests),
             "linear probe": (tests @ W.T + b).argmax(dim=1),
             settings["label"]: evaluate.score(learner, dataset, labels, frozen)[1].argmax(dim=1)}
    rows = [(settings["classes"], "accuracy", "95 %", "class mean", "the run over it", "95 %")]
    for who, right in ((who, predicted == truth) for who, predicted in found.items()):
        low, high = evaluate.wilson(int(right.sum()), len(truth))
        gain = evaluate.paired_gain(right, found[settings["label"]] == truth)
        rows.append((who, 100 * right.double().mean().item(), f"{low:.1f} to {high:.1f}",
                     evaluate.mean_recall(truth, right, K), f"{gain['points']:+.2f}",
                     f"{gain['low']:+.2f} to {gain['high']:+.2f}"))
    rows[-1] = (*rows[-1][:4], "", "")
    print(f"{dataset.name}: {n} training images, {len(truth)} test images\n{evaluate.table(rows)}\n"
          f"linear probe: C = {C:g}, chosen in {FOLDS} folds of the training images")


def main(argv=None):
    p = data.Parser(description="Nearest class mean and a linear probe, beside a finished run.")
    p.add_argument("run", type=Path, help="folder that train.py made")
    evaluate.add_machine_options(p.add_argument, data_root=None)
    return data.run_script(lambda: run(p.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
