"""A finished run as one HTML page, to be sent to others: no script, no network, pictures inside.

    python evaluate.py RUN --report report.html

It is made from what evaluate.py has just measured and written, and from the run's log.csv and
run.json. Every text is escaped: class and file names are other people's words.
"""
import base64
import csv
import html
import io
import json
import math
from pathlib import Path

from assets import files, measures, weight_files

SMALL = 160                 # pixels of the longer side of an embedded picture
PICTURES = 4                # of each confusion
POINTS = 200                # of the training curve; more steps are averaged
THIN = 10                   # test images of a class under which its recall is only a hint
HIDDEN = ("trained_classes", "class_counts", "prompts", "data_root", "dataset", "classnames_file",
          "device", "label", "backbone")        # shown elsewhere, or paths of one's own machine
HELPED = {
    measures.GAIN: "Training raised that, by more than the test images' noise.",
    measures.LOSS: "Training lowered that, by more than the test images' noise: zero-shot CLIP "
                   "serves better.",
    measures.NOISE: "Whether training changed that, these test images can't tell: more could.",
}
STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:0 auto;padding:1rem;color:#222;
background:#fff;overflow-wrap:anywhere}
h1{font-size:1.5rem;line-height:1.2}h2{font-size:1.2rem;margin-top:2rem;border-top:2px solid #222}
h3,h4{font-size:1rem;margin:1rem 0 .2rem}h4{margin:0 0 .2rem;font-weight:normal}
small,figcaption{color:#555;font-size:.85rem}
table{border-collapse:collapse;width:100%;table-layout:fixed}th{width:9.5rem}
td,th{padding:.2rem .6rem .2rem 0;text-align:left;vertical-align:top;border-bottom:1px solid #ddd}
.classes{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,17rem),1fr));
gap:.8rem 2rem}
.bar{background:#eee;height:.7rem;margin:.15rem 0}.bar i{display:block;height:100%}
.now{background:#0072b2}.before{background:#999}
.key i{display:inline-block;width:1em;height:.7em;margin:0 .3em 0 1em}
.pictures{display:flex;flex-wrap:wrap;gap:.5rem}figure{margin:0;width:10rem;max-width:45%}
img,svg{max-width:100%;height:auto}svg{width:40rem}"""


def escape(value):
    return html.escape(str(value), quote=True)


def write(path, run, settings, results, out, dataset):
    """Write the page of a run.

    results   what evaluate.base_to_novel answered; out: the folder of its CSV files
    dataset   whose pictures are shown where they were mistaken
    """
    title = f"{settings['label']} on {dataset.name}"
    parts = {part: facts for part, facts in results.items() if isinstance(facts, dict)}
    body = [f"<h1>{escape(title)}</h1>", about(settings, results, dataset)]
    for part, facts in parts.items():
        per_class = read_csv(out / part / "per_class.csv")
        mistaken = read_csv(out / part / "predictions.csv")
        body += [f"<h2>{escape(part.capitalize())} classes</h2>",
                 in_short(facts, per_class, settings), summary(facts),
                 classes(per_class), groups(facts), worst(facts, mistaken, dataset)]
    body += [curve(run / "log.csv"), details(run, settings)]
    page = ('<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body>\n"
            + "\n".join(filter(None, body)) + "\n</body></html>\n")
    files.write(path, page)
    print(f"report: {path}, {len(page.encode()) / 1e6:.1f} MB")


def read_csv(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def table(rows):
    """Rows of (words, value) -> a table of two columns, which fits a phone."""
    lines = (f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows)
    return f"<table>{''.join(lines)}</table>"


# From the top of the page ----------------------------------------------------------------------

def about(settings, results, dataset):
    n, tau, backbone = settings["class_counts"], settings.get("tau"), settings["backbone"]
    if backbone not in weight_files.MODELS:               # a weights file: no path of the machine
        backbone = Path(backbone).name
    kept = "the folder's own counts" if tau is None else f"tau = {tau:g}"
    rows = [("CLIP", f"{backbone}, frozen"),
            ("trained on", f"{sum(n)} images of {len(n)} classes, {max(n)} to {min(n)} a class "
                           f"({kept})"),
            ("tested on", f"{sum(f['test_images'] for f in results.values() if type(f) is dict)} "
                          "images that trained nothing"),
            ("split", dataset.split)]
    if "harmonic_mean" in results:
        rows.append(("harmonic mean", f"{results['harmonic_mean']:.2f} % of base and novel"))
    return table(rows)


def in_short(facts, per_class, settings):
    """How good it is, what training did and how far to trust that, in plain words."""
    low, high = facts["accuracy_interval"]
    said = [f"Of 100 images like the tested ones about {facts['accuracy']:.0f} are named rightly "
            f"({low:.0f} to {high:.0f} fit what was seen)."]
    if facts["gain"]:
        said += training(facts, settings)
    thin = [row for row in per_class if 0 < int(row["test_images"]) < THIN]
    if thin:
        said.append(f"{len(thin)} of {len(per_class)} classes have fewer than {THIN} test images: "
                    "take their bars below as hints.")
    return f"<p>{escape(' '.join(said))}</p>"


def training(facts, settings):
    """Sentences on what training changed, for all images and for rare classes."""
    now, before = facts["mean_recall"], facts["zeroshot_mean_recall"]
    said = [HELPED[measures.verdict(facts["gain"])]]
    if not math.isclose(now, facts["accuracy"], abs_tol=0.01):      # classes of unlike size
        said.append("The mean over classes, in which a rare one counts as much as a common one, "
                    f"went from {before:.0f} to {now:.0f} %.")
    if facts["gain"]["low"] > 0 and now < before:
        said.append("Common classes gained and rare ones lost.")
        if not settings.get("logit_adjust"):
            said.append("To weigh rare ones more, train with --logit-adjust.")
    return said


def summary(facts):
    low, high = facts["accuracy_interval"]
    rows = [("accuracy", f"{facts['accuracy']:.1f} % (95 % interval {low:.1f} to {high:.1f}, "
                         f"{facts['test_images']} test images)"),
            ("mean over classes", f"{facts['mean_recall']:.1f} %: each class counts alike"),
            ("zero-shot CLIP", f"{facts['zeroshot']:.1f} %, mean over classes "
                               f"{facts['zeroshot_mean_recall']:.1f} %, nothing trained")]
    gain = facts["gain"]
    if gain:
        rows.append(("gain", f"{gain['points']:+.1f} points (95 % interval {gain['low']:+.1f} to "
                             f"{gain['high']:+.1f}): {measures.verdict(gain)}; {gain['better']} "
                             f"images are right only now, {gain['worse']} only before"))
    return table(rows)


def classes(per_class):
    """Recall of each class as bars, tuned above zero-shot; the most trained class first."""
    per_class = sorted(per_class, key=lambda row: -int(row["training_images"]))
    key = ('<p class="key">Recognised test images of each class, per cent:<i class="now"></i>tuned'
           '<i class="before"></i>zero-shot</p>')
    return f'{key}<div class="classes">{"".join(map(one_class, per_class))}</div>'


def one_class(row):
    name = escape(row["class"].replace("_", " "))
    counts = f"{row['training_images']} trained, {row['test_images']} tested"
    bars = "".join(bar(row[column], kind)
                   for column, kind in (("recall", "now"), ("zeroshot_recall", "before")))
    return f"<div><b>{name}</b> <small>{escape(counts)}: {words(row)}</small>{bars}</div>"


def words(row):
    recall, plain = float(row["recall"]), float(row["zeroshot_recall"])
    return "no test image" if math.isnan(recall) else f"{recall:.0f} (zero-shot {plain:.0f})"


def bar(recall, kind):
    value = float(recall)
    width = 0 if math.isnan(value) else min(max(value, 0), 100)
    return f'<div class="bar"><i class="{kind}" style="width:{width:.1f}%"></i></div>'


def groups(facts):
    """Recall and calibration of many-, medium- and few-shot classes."""
    errors, rows = facts["calibration_error"], []
    for name, group in facts["groups"].items():
        rows.append((name, f"{group['classes']} classes, recall {group['recall']:.1f} % (zero-shot "
                           f"{group['zeroshot']:.1f}), calibration error {errors[name]:.1f} %"))
    rows.append(("all", f"calibration error {errors['all']:.1f} %"))
    note = (f"Many: at least {measures.MANY} training images; few: at most {measures.FEW}. "
            f"Calibration error: how far the stated probability lies from the share of right "
            f"answers, on average over {measures.BINS} bins of equal width; 0 is best.")
    return f"<h3>Rare and frequent classes</h3>{table(rows)}<p><small>{note}</small></p>"


# Pictures --------------------------------------------------------------------------------------

def worst(facts, predictions, dataset):
    """The most frequent confusions, with some of their pictures."""
    blocks = []
    for name, other, images in facts["confusions"]:
        shown = [row for row in predictions if (row["class"], row["predicted"]) == (name, other)]
        figures = "".join(figure(row, dataset) for row in shown[:PICTURES])
        heading = escape(f"{name} taken for {other} ({images})".replace("_", " "))
        blocks.append(f'<div><h4>{heading}</h4><div class="pictures">{figures}</div></div>')
    inside = f'<div class="classes">{"".join(blocks)}</div>'
    return f"<h3>Most confused</h3>{inside}" if blocks else ""


def figure(row, dataset):
    caption = escape(f"{row['picture']}, {100 * float(row['probability']):.0f} % sure")
    return (f'<figure><img alt="{caption}" src="{embedded(dataset.open(row["picture"]))}">'
            f"<figcaption>{caption}</figcaption></figure>")


def embedded(picture):
    """A small copy as a data URI; JPEG without the original's metadata, such as its place."""
    picture.thumbnail((SMALL, SMALL))
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()


# The training, and how it was made -------------------------------------------------------------

def curve(path):
    """L and L_CLIP of each step as an inline drawing, "" where nothing was trained."""
    if not path.is_file():
        return ""
    rows = read_csv(path)
    lines = {name: averaged([float(row[name]) for row in rows]) for name in ("loss", "l_clip")}
    values = [value for line in lines.values() for value in line]
    if not values:
        return ""
    low, high = min(values), max(values)
    drawn = "".join(polyline(lines[name], low, high, colour)
                    for name, colour in (("loss", "#0072b2"), ("l_clip", "#d55e00")))
    return (f'<h2>Training</h2><svg viewBox="0 0 400 160" role="img" aria-label="training curve">'
            f'<text x="0" y="12" font-size="11">{high:.3g}</text>'
            f'<text x="0" y="138" font-size="11">{low:.3g}</text>'
            f'<text x="395" y="156" font-size="11" text-anchor="end">step {len(rows)}</text>'
            f'<text x="60" y="156" font-size="11" fill="#0072b2">L, Eq. (7)</text>'
            f'<text x="140" y="156" font-size="11" fill="#d55e00">L_CLIP</text>{drawn}</svg>')


def averaged(values):
    """At most POINTS finite numbers: means of equal stretches."""
    size = -(-len(values) // POINTS) or 1
    stretches = (values[i:i + size] for i in range(0, len(values), size))
    return [sum(s) / len(s) for s in stretches if math.isfinite(sum(s))]


def polyline(values, low, high, colour):
    last, span = max(len(values) - 1, 1), (high - low) or 1
    points = " ".join(f"{50 + 345 * i / last:.1f},{135 - 125 * (value - low) / span:.1f}"
                      for i, value in enumerate(values))
    return f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>'


def details(run, settings):
    """Prompts and settings as text; paths of the machine are left out."""
    told = json.loads((run / "run.json").read_text(encoding="utf-8")) if (
        run / "run.json").is_file() else {}
    prompts = "".join(f"<li>{escape(prompt)}</li>" for prompt in told.get("prompts", []))
    rows = [(name, value) for name, value in settings.items()
            if name not in HIDDEN and value is not None]
    rows += [(name, value) for name, value in told.get("versions", {}).items()]
    listed = f"<h3>Prompts</h3><ul>{prompts}</ul>" if prompts else ""
    return f"<h2>How it was made</h2>{listed}<h3>Settings</h3>{table(rows)}"
