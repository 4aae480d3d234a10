"""What NPT's quantities are on CLIP features in a file, of this program or of others.

    python assets/export.py RUN --features features.npz     # a run's; any CLIP's will do
    python assets/geometry.py features.npz [--out figures.csv]

The file is numpy's .npz with z (N, d) image features, y (N,) labels and g (K, d) class texts, and
if it likes `temperature`. Nothing is trained: the figures say where CLIP stands, and beside it the
tiny CLIP on the base classes of the little world. real_geometry.csv has those of OpenAI's ViT-B/32
on the file that real_features.py tells of.
"""
import sys
from pathlib import Path

import numpy
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))
import clip_model
import data
import evaluate
import losses
import prompts
from assets import export

CSV = Path(__file__).with_name("real_geometry.csv")


def read_features(path, images="z", labels="y"):
    """A .npz file -> z (N, d), y (N,), g (K, d), lambda; lengths 1; ValueError where it is none.

    g may also have one set of texts an image, (N, K, d). Arrays of objects are not read.
    """
    try:
        with numpy.load(path, allow_pickle=False) as file:
            z, y, g = (torch.from_numpy(file[name]) for name in (images, labels, "g"))
            lam = float(file["temperature"]) if "temperature" in file else 0.01
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except Exception as error:                      # a damaged file raises any of half a dozen
        raise ValueError(f"{path}: expected an .npz file with the arrays {images}, {labels} and g "
                         f"({error})") from None
    z, g, y = z.float(), g.float(), y.long()
    fits = z.ndim == 2 and g.ndim in (2, 3) and z.shape[1] == g.shape[-1] and y.shape == z.shape[:1]
    if not fits or not len(z) or not 0 <= y.min() <= y.max() < g.shape[-2] or not 0 < lam < 1:
        raise ValueError(f"{path}: expected {images} (N, d), {labels} (N,) below K and g "
                         f"(K, d), got {tuple(z.shape)}, {tuple(y.shape)}, {tuple(g.shape)}, "
                         f"temperature {lam}")
    if not (z.isfinite().all() and g.isfinite().all()):
        raise ValueError(f"{path}: z or g is not finite")
    return F.normalize(z, dim=-1), y, F.normalize(g, dim=-1), lam


def geometry(z, y, g, lam):
    """{what: number} of unit features, in the order of the paper."""
    S, K = losses.similarities(z, g), g.shape[-2]                                   # (N, K)
    own, right = S.gather(1, y[:, None]), S.argmax(dim=1) == y
    shared, unequal = losses.lc_parts(g)
    _, terms = losses.npt_loss(S / lam, z, g, y)
    return {
        "classes": K, "images": len(z), "lambda": lam,
        "accuracy, %": 100 * right.double().mean().item(),
        "mean over classes, %": evaluate.mean_recall(y, right, K),
        "cosine, image and its own text": own.mean().item(),
        "cosine, image and other texts": ((S.sum() - own.sum()) / (len(z) * (K - 1))).item(),
        "Delta_LCD, Def. 2": losses.delta_lcd(g).item(),
        "root of the mean L_LC": losses.lcd_rms(g).item(),
        "mean L_LC: what all texts share": shared.item(),
        "mean L_LC: unequal angles": unequal.item(),
        "Delta_MID, Def. 3": losses.delta_mid(z, g, y).item(),
        **{name.replace("_", " "): value for name, value in losses.collapses(z, g, y).items()},
        "L_CLIP": terms["l_clip"].item(),
        "0.3 L_LC, mean over pairs": 0.3 * terms["l_lc"].item(),
        "0.3 L_LC, printed sum": 0.3 * K * (K - 1) * terms["l_lc"].item(),
        "0.8 L_MI, mean over images": 0.8 * terms["l_mi"].item(),
        "0.8 L_MI, printed sum over these images": 0.8 * len(z) * terms["l_mi"].item(),
    }


@torch.no_grad()
def little_world(name="world", part="base"):
    """What read_features answers, of zero-shot CLIP on classes of an embedded dataset."""
    clip, dataset = clip_model.load("tiny"), data.load(name)
    labels = evaluate.parts_of(dataset)[part]
    zeroshot = prompts.build("zeroshot", clip, [dataset.classnames[k] for k in labels])
    z, y, g = export.image_and_text_features(zeroshot, dataset, labels,
                                             evaluate.FrozenFeatures(dataset))
    return z, y, g, clip.temperature.item()


def main(argv=None):
    p = data.Parser(description=__doc__.splitlines()[0])
    p.add_argument("features", type=Path, metavar="FILE.npz", help="see this file's top")
    p.add_argument("--out", type=Path, metavar="FILE.csv", help="keep what is printed")

    def job():
        args = p.parse_args(argv)
        if args.out:
            data.check_output("--out", args.out, [".csv"])
        found, world = geometry(*read_features(args.features)), geometry(*little_world())
        rows = [("", "this file", "little world")]
        for name, value in found.items():
            digits = 4 if isinstance(value, float) else 0
            rows.append((name, f"{value:.{digits}f}", f"{world[name]:.{digits}f}"))
        for name, *numbers in rows:
            print(f"{name:42}", *(f"{number:>12}" for number in numbers))
        if args.out:
            data.write_csv(args.out, [("what", "file", "world"), *rows[1:]])

    return data.run_script(job)


if __name__ == "__main__":
    sys.exit(main())
