"""What a finished run learned, as a .npz file for numpy: no pickle in it, nothing of torch.

    python assets/export.py RUN --texts texts.npz           # the class texts, for use elsewhere
    python assets/export.py RUN --texts more.npz --classnames names.txt     # of other classes
    python assets/export.py RUN --features features.npz     # image and text features, to study

    g  (K, d)  text features        z  (N, d)  image features of the test images
    y  (N,)    labels in 0..K-1     all of length 1, float32

Both files also hold classnames (K,), method, backbone and temperature, lambda in Eq. (1).
"""
import io
import sys
from pathlib import Path

import numpy  # torchvision depends on it
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import data
import evaluate
from assets import predict


def save(path, learner, settings, **arrays):
    content = io.BytesIO()
    numpy.savez(content, **arrays, method=settings["method"], backbone=settings["backbone"],
                temperature=float(learner.clip.temperature))
    data.write(path, content.getvalue())


@torch.no_grad()
def image_and_text_features(learner, dataset, labels, frozen, show=None):
    """z (N, d), y (N,) of the test images of some classes and g (K, d), with which they are scored.

    CoCoOp's texts belong to images; g is then their mean over these images.
    """
    learner.set_classes([dataset.classnames[k] for k in labels])
    z, y = frozen.of(learner, labels, show)
    if not learner.per_image:
        return z, y, learner.text_features()
    parts = z.split(evaluate.images_at_a_time(learner))
    return z, y, sum(learner.text_features(z_b).sum(dim=0) for z_b in parts) / len(z)


@torch.no_grad()
def export_texts(path, learner, settings):
    """g, classnames and prompts (K,). A photo's probabilities are softmax(z @ g.T / temperature).

    ValueError for CoCoOp, whose texts belong to images.
    """
    if learner.per_image:
        raise ValueError("CoCoOp makes its class texts anew for each image: there are none to "
                         "write; use assets/predict.py, or train coop")
    g = learner.text_features().float().cpu().numpy()
    save(path, learner, settings, g=g, classnames=learner.classnames,
         prompts=[learner.show_prompt(name) for name in learner.classnames])
    how = "classify with CLIP's own image features"
    if not learner.frozen_images:
        how = ("MaPLe's image tower is tuned too, so with CLIP's own image features they do not "
               "classify as this run does")
    print(f"saved in {path}: {len(g)} class texts; {how}")


def export_features(path, learner, settings, dataset, parts, frozen):
    """z, y and pictures (N,); g, classnames and part (K,), the part that a class belongs to.

    parts  {part: labels}; each is scored on its own, its images against its texts, and y counts
           through the classes of all parts
    """
    scored = [image_and_text_features(learner, dataset, labels, frozen, part)
              for part, labels in parts.items()]
    z, y, g = ([tensor.cpu().numpy() for tensor in column] for column in zip(*scored, strict=True))
    first = numpy.cumsum([0, *map(len, g)])                         # class of each part
    pictures = [name for labels in parts.values()
                for name, _ in data.select(dataset.test, labels)]
    save(path, learner, settings, z=numpy.concatenate(z), g=numpy.concatenate(g),
         y=numpy.concatenate([own + k for own, k in zip(y, first, strict=False)]),
         pictures=pictures, part=[part for part, labels in parts.items() for _ in labels],
         classnames=[dataset.classnames[k] for labels in parts.values() for k in labels])
    print(f"saved in {path}: {len(pictures)} images, {first[-1]} classes")


def run(args):
    if args.features and args.classnames:
        raise ValueError("--classnames goes with --texts; a dataset has its own class names")
    if args.texts and args.data_root:
        raise ValueError("--data-root goes with --features: texts need no dataset")
    out = args.texts or args.features
    data.check_output("--texts" if args.texts else "--features", out, [".npz"])
    names = predict.read_classnames(args.classnames) if args.classnames else None
    learner, settings = evaluate.load_run(args.run, *evaluate.machine(args), names,
                                          args.backbone)
    if args.texts:
        return export_texts(out, learner, settings)
    dataset = evaluate.load_dataset(args.run, settings, args.data_root)
    print(f"{settings['label']} on {dataset.name}, split: {dataset.split}")
    parts = evaluate.tested_classes(dataset, settings)
    frozen = evaluate.FrozenFeatures(dataset, args.run.parent / "features")
    return export_features(out, learner, settings, dataset, parts, frozen)


def main(argv=None):
    p = data.Parser(description=__doc__.splitlines()[0])
    add = p.add_argument
    add("run", type=Path, help="folder that train.py made")
    what = p.add_mutually_exclusive_group(required=True)
    what.add_argument("--texts", type=Path, metavar="FILE.npz",
                      help="the classes' text features, for use with any CLIP of this backbone")
    what.add_argument("--features", type=Path, metavar="FILE.npz",
                      help="image and text features of its test images, labels and names")
    add("--classnames", metavar="FILE", help="with --texts: class names, one a line, also never "
                                             "trained ones (the run's)")
    evaluate.add_machine_options(add, data_root=None)
    return data.run_script(lambda: run(p.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
