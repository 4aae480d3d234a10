"""What train.py says of a run: what is about to happen, warnings, the table at the end."""
import math
import re

import data
import evaluate
import losses
import prompts


def announce(learner, dataset, settings):
    """What is about to happen: prompts, images of each class, imbalance, trainable tensors."""
    names, n = settings["trained_classes"], settings["class_counts"]
    device, learned = learner.clip.logit_scale.device.type, prompts.trainable(learner)
    print(f"{settings['label']} on {dataset.name}: {len(names)} {settings['classes']} classes, "
          f"CLIP {settings['backbone']}, {settings['precision']} on {device}, seed "
          f"{settings['seed']}")
    print(f"split     {dataset.split}")
    for note in dataset.notes:
        print(f"note      {note}")
    print(f"prompts   {several([learner.show_prompt(name) for name in names], 3, '  ')}")
    if settings["method"] == "zeroshot":
        print("trains    nothing: a prompt is written by hand, nothing is trained")
        return
    print(f"images    {sum(n)}: {several(n, 40, ' ')}; min/max = {min(n) / max(n):.4g} where "
          f"{data.tau_words(settings['tau'])}")
    warn_short_classes(dataset, settings)
    shapes = [f"{name} {tuple(p.shape)}" for name, p in learned.items()]
    print(f"trains    {sum(p.numel() for p in learned.values()):,} numbers in {len(learned)} "
          f"tensors: {several(shapes, 4, ', ')}")
    if settings["prompt_depth"]:
        print(f"depth     {settings['prompt_depth']} layers have tokens of their own")
    terms = f" + {settings['w1']:g} L_LC + {settings['w2']:g} L_MI ({settings['reduction']})"
    print(f"objective L_CLIP{terms if settings['npt'] else ''}; {settings['epochs']} epochs, batch "
          f"{settings['batch_size']}, lr {settings['lr']:g}")
    if settings["epochs"] == 1:
        print("note      the first epoch is CoOp's warm-up, at lr 1e-05: one epoch learns next to "
              "nothing")
    note_floor(learner.clip.text_projection.shape[1], settings)


def several(words, most, between):
    """The first of some words, and "..." where there are more."""
    more = ["..."] if len(words) > most else []
    return between.join([*map(str, words[:most]), *more])


def warn_short_classes(dataset, settings):
    shuffle_seed = settings["draw_seed"] if settings["shuffle_classes"] else None
    names, n = settings["trained_classes"], settings["class_counts"]
    asked = data.asked_counts(dataset, range(len(n)), settings["shots"], settings["tau"],
                              shuffle_seed, settings["images"])
    short = [name for name, have, want in zip(names, n, asked, strict=True) if have < want]
    if short:
        print(f"warning: {len(short)} classes have fewer images than asked for and give all they "
              f"have: {', '.join(short[:5])}")


def note_floor(d, settings):
    K = len(settings["trained_classes"])
    if settings["w1"] and d + 1 < K:
        floor = losses.lc_floor(K, d, settings["ew"], settings["reduction"])
        print(f"note      {K} classes in {d} dimensions: no simplex ETF exists; L_LC cannot fall "
              f"below {floor:.4g}")


def warn_near_chance(dataset, labels, part, accuracy):
    chance = 100 / len(labels)
    if len(labels) > 1 and accuracy < 1.5 * chance:
        names = (dataset.classnames[k].replace("_", " ") for k in labels[:3])
        print(f"warning: zero-shot accuracy on {part} classes is {accuracy:.1f} %, near chance "
              f"({chance:.1f} %): do the class names say what the pictures show? First prompts: "
              + " ".join(dataset.template.replace("{}", name) for name in names))


def warn_collapsed(last, K, tuned):
    """last: L_CLIP over the last epoch; tuned: the parts' measures, trained classes first."""
    accuracy = next(iter(tuned.values()))["accuracy"]
    if K > 1 and last > 0.95 * math.log(K) and accuracy <= 150 / K:
        print(f"warning: L_CLIP ended at {last:.3f}, near ln K = {math.log(K):.3f}, a guess among "
              f"{K} classes: this run has collapsed; try a smaller --lr or another --seed")


def accuracies(result):
    """Names of the accuracies that a result holds; beside one over all classes, their mean."""
    means = ["mean_recall"] if result.get("all") is not None else []
    names = ["base", "novel", "harmonic_mean", "all", *means]
    return [name for name in names if result.get(name) is not None]


def report(result, label):
    """The table a run ends with."""
    columns = accuracies(result)
    rows = [("", *columns, "Delta_LCD", "Delta_MID")]
    for name, numbers in (("zero-shot", result["zeroshot"]), (label, result)):
        deltas = (f"{numbers[delta]:.4f}" for delta in ("delta_lcd", "delta_mid"))
        rows.append((name, *(numbers[c] for c in columns), *deltas))
    print(f"\n{evaluate.table(rows)}")


def grid(results):
    """The table a grid ends with: means over the seeds. results: {run's name: result.json}."""
    cells = {}
    for name, result in results.items():
        cells.setdefault(re.sub(r"-seed\d+", "", name), []).append(result)
    columns = list(dict.fromkeys(c for result in results.values() for c in accuracies(result)))
    rows = [("mean over seeds", "seeds", *columns)]
    for name, found in cells.items():
        rows.append((name, len(found), *(mean(result.get(c) for result in found) for c in columns)))
    first = next(iter(results.values()))
    rows.insert(1, (f"zero-shot, {first['dataset']}", "", *(
        mean([first["zeroshot"].get(c)]) for c in columns)))
    print(evaluate.table(rows))


def mean(values):
    """Of what was measured; "-" for nothing."""
    values = [value for value in values if value is not None]
    return sum(values) / len(values) if values else "-"
