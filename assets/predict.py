"""Photos to their most probable classes, by a finished run: printed, and as a CSV file.

    python assets/predict.py RUN photo.jpg folder       # with all folders below it
    python assets/predict.py RUN folder --out predictions.csv
    python assets/predict.py RUN photo.jpg --classnames names.txt       # of other classes
    python assets/predict.py RUN folder --review 0.8    # below it a person should look

Without --review that is the threshold which report.py found on the run's test images, if it did.

assets/photos.md tells the whole way from a folder of pictures to here.
"""
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import data
import evaluate
from assets import report

TOP = 5                                 # classes that are shown of each photo


def read_classnames(path):
    """Names, one a line; a line may also be `folder<TAB>name`, as train.py takes it."""
    names = [line.split("\t")[-1] for line in data.read_lines(Path(path))]
    if not names:
        raise ValueError(f"{path}: expected class names, one a line; it is empty")
    return names


def photos_in(path):
    """The file itself, or all pictures in a folder and the folders below, in order of names."""
    if not path.is_dir():
        return [path]
    found = [file for file in sorted(path.rglob("*")) if not file.is_dir()      # dead links too
             and not any(part.startswith(".") for part in file.relative_to(path).parts)]
    heic = [file for file in found if file.suffix.lower() in data.HEIC]
    if heic:
        print(f"warning: {len(heic)} HEIC files passed over, first {data.printable(str(heic[0]))}: "
              "convert to JPEG")
    photos = [file for file in found if file.suffix.lower() in data.ENDINGS]
    if not photos:
        raise ValueError(f"{path}: expected pictures in it ({' '.join(data.ENDINGS)}), found none")
    return photos


def predict(learner, paths):
    """(photo, [(class name, probability)]), the most probable class first, for each photo; and
    (photo, what is wrong with it) where it can't be read."""
    g = None if learner.per_image else learner.text_features()          # once for all photos
    view = data.transform(learner.clip.visual.resolution, train=False)
    for photo in (photo for path in paths for photo in photos_in(path)):
        try:
            picture = data.open_picture(photo, exif=True)               # turned as its EXIF says
        except (ValueError, FileNotFoundError) as problem:
            yield photo, str(problem)
            continue
        image = view(picture)[None].to(learner.clip.logit_scale.device)
        logits = learner(image, g)[0][0]                                # Eq. (1)
        p, k = evaluate.finite(logits.softmax(dim=-1)).topk(min(TOP, len(logits)))
        names = [learner.classnames[i] for i in k.tolist()]
        yield photo, list(zip(names, p.tolist(), strict=True))


@torch.no_grad()
def run(args):
    if args.out:
        data.check_output("--out", args.out, [".csv"])
    names = read_classnames(args.classnames) if args.classnames else None
    learner, settings = evaluate.load_run(args.run, *evaluate.machine(args), names,
                                          args.backbone)
    rows, problems, below = [], [], args.review
    if below is None and not args.classnames:
        below = report.kept_threshold(args.run, settings)
    columns = range(1, 1 + min(TOP, len(learner.classnames)))
    for photo, answer in predict(learner, args.photos):
        if isinstance(answer, str):
            print(f"warning: {data.printable(answer)}; not read")
            problems.append(answer)
            rows.append((photo, "not read", *[""] * (2 * len(columns) - 1),
                         *["yes"] * (below is not None)))
            continue
        shown = ", ".join(f"{name.replace('_', ' ')} {100 * p:.1f} %" for name, p in answer)
        review = () if below is None else ("yes" if answer[0][1] < below else "no",)
        print(data.printable(f"{photo}: {shown}{'; review' * ('yes' in review)}"))
        rows.append((photo, *(word for name, p in answer for word in (name, f"{p:.4f}")), *review))
    if len(problems) == len(rows):
        raise ValueError(f"none of the {len(rows)} pictures could be read; {problems[0]}")
    if below is not None:
        marked = sum(row[-1] == "yes" for row in rows)
        print(f"review    {marked} of {len(rows)} photos: below {min(below, 1):.4f}, or not read")
    elif not args.classnames:
        print(f"note      no threshold of review is known: assets/report.py {args.run} finds one")
    if args.out:
        head = ("picture", *(f"{word}_{k}" for k in columns for word in ("class", "probability")))
        head += ("review",) * (below is not None)
        data.write_csv(args.out, [head, *rows])
        print(f"{len(rows)} photos, {len(problems)} of them not read: {args.out}")


def main(argv=None):
    p = data.Parser(description="Photos to their most probable classes, by a finished run.")
    add = p.add_argument
    add("run", type=Path, help="folder that train.py made")
    add("photos", type=Path, nargs="+", help="pictures, and folders of them")
    add("--classnames", metavar="FILE", help="class names, one a line, also never trained ones "
                                             "(the run's)")
    add("--out", type=Path, metavar="FILE.csv", help="also write them to a file")
    add("--review", type=data.number(0, 1), metavar="P",
        help="mark photos whose first probability is below (what report.py found)")
    evaluate.add_machine_options(add, data_root=None)
    return data.run_script(lambda: run(p.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
