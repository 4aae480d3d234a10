"""Checkpoints of the original CoOp, CoCoOp and MaPLe: into a run's folder, and out of one.

    python assets/checkpoints.py model.pth.tar-50 --dataset eurosat --out runs/theirs
    python assets/checkpoints.py RUN --out prompt_learner/model.pth.tar-50

The folder is as train.py leaves one, without numbers: evaluate.py measures it as any run. From CoOp
(Dassl): the tensors lie under "state_dict", beside epoch, val_result, optimizer and scheduler:

    CoOp     ctx (b, w), or (K, b, w) where each class has its own      in prompt_learner/
    CoCoOp   ctx (b, w), meta_net.linear1/2.weight/bias                 in prompt_learner/
    MaPLe    prompt_learner. before ctx (b, w), proj.weight/bias,       in MultiModalPromptLearner/
             compound_prompts_text.0.. and compound_prompt_projections.0..; CLIP itself besides

and for all three token_prefix (K, 1, w) and token_suffix (K, T, w): the start token, and what
follows the learned tokens, embedded, of the trained classes. The originals pass over these two.
Here they tell whether CLIP, words and classes are the right ones.

Whole Python objects stand in such a file too, a scheduler's and numpy's numbers, which
torch.load(weights_only=True) refuses. For those in IGNORED it gets empty stand-ins; so no code of a
file is run, none of numpy's or of torch's optimisers either. Any other name is refused.
"""
import argparse
import re
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))      # when it runs as a script

import clip_model
import data
import evaluate
import prompts
import train

LEARNED = r"ctx|meta_net\..+|proj\.(weight|bias)|compound_prompt.+"
FOLDER = {"coop": "prompt_learner", "cocoop": "prompt_learner", "maple": "MultiModalPromptLearner"}
UNKNOWN = data.Dataset("unknown", [], "", [], [], [], "unknown", False, Path())     # no dataset's
NEAR = 0.02             # of a vector's length, to be the same one; half precision moves it by 0.001


class Ignored:
    """Stands where a file has an object that nobody reads: takes anything, keeps nothing."""

    def __init__(self, *_):
        pass

    __setstate__ = __init__


def plain_dict(*_):
    """Stands for defaultdict: what a file fills in must be a dictionary."""
    return {}


IGNORED = [
    (plain_dict, "collections.defaultdict"),
    *((Ignored, name) for name in (
        "builtins.dict", "numpy.dtype", "numpy.core.multiarray.scalar",
        "numpy._core.multiarray.scalar",                                    # numpy 1 and 2
        "torch.optim.lr_scheduler.CosineAnnealingLR", "torch.optim.lr_scheduler.StepLR",
        "torch.optim.lr_scheduler.MultiStepLR", "torch.optim.sgd.SGD", "torch.optim.adam.Adam",
        "torch.optim.adamw.AdamW", "torch.optim.rmsprop.RMSprop")),
]


def read(path):
    """A checkpoint -> {name: tensor} without prefixes, learned ones and the two buffers; its epoch.

    ValueError where it is none of the three methods'.
    """
    try:
        with torch.serialization.safe_globals(IGNORED):
            content = clip_model.read_tensors(path)
        state = content.get("state_dict", content)
        tensors = {name.removeprefix("module.").removeprefix("prompt_learner."): tensor
                   for name, tensor in state.items()}
    except PermissionError:
        raise
    except Exception as error:                  # a damaged file raises any of a dozen types
        asked = re.search(r"GLOBAL (\S+)", str(error))
        if asked:
            raise ValueError(f"asks to run {asked[1][:80]}, which learned tensors have no need of; "
                             "nothing in it was run. Get it from where you trust it") from None
        raise ValueError("not a checkpoint, or a damaged one; expected a dictionary with "
                         "state_dict, as torch.save writes it. Copy it again") from None
    if any("VPT" in name for name in tensors):
        raise ValueError("holds visual prompts that nothing projects (VPT), expected CoOp, CoCoOp "
                         "or MaPLe")
    kept = {name: tensor for name, tensor in tensors.items() if torch.is_tensor(tensor)
            and re.fullmatch(LEARNED + "|token_prefix|token_suffix", name) and not tensor.is_meta}
    for name, tensor in kept.items():
        clip_model.check_weight(name, tensor)
    if "ctx" not in kept or kept["ctx"].ndim not in (2, 3):
        raise ValueError("holds no learned tokens (ctx of 2 or 3 dimensions); expected a "
                         "checkpoint of CoOp, CoCoOp or MaPLe")
    return kept, content["epoch"] if type(content.get("epoch")) is int else None


def ids_of(buffer, clip):
    """Embedded tokens (K, T, w) -> K lists of the ids of this CLIP's tokens, -1 for any others."""
    table = clip.token_embedding.weight.float()
    if buffer.ndim != 3 or buffer.shape[2] != table.shape[1]:
        return [[-1]]
    rows, where = buffer.float().flatten(0, 1).unique(dim=0, return_inverse=True)
    ids = torch.cat([torch.cdist(part, table).argmin(dim=1) for part in rows.split(64)])
    apart = (rows - table[ids]).norm(dim=1)
    ids[apart > NEAR * table[ids].norm(dim=1)] = -1
    return ids[where].view(buffer.shape[:2]).tolist()


def read_classes(tensors, clip, backbone, fixed):
    """What follows the learned tokens of each class: K lists of ids up to the end token, or None.

    ValueError where it is not of this CLIP, or doesn't begin with the ids of the `fixed` words.
    """
    other = f"of CLIP {backbone}: give the --backbone that it was trained on"
    w, own = tensors["ctx"].shape[-1], clip.token_embedding.embedding_dim
    if w != own:
        raise ValueError(f"its tokens are {w} wide, not {own} as those {other}")
    start, end = clip_model.prompt_ids("")
    if "token_prefix" in tensors and [start] not in ids_of(tensors["token_prefix"], clip):
        raise ValueError(f"its start token is not that {other}")
    if "token_suffix" not in tensors:
        return None
    rows = ids_of(tensors["token_suffix"], clip)
    rows = [ids[:ids.index(end) + 1] if end in ids else [-1] for ids in rows]
    if any(-1 in ids for ids in rows):
        raise ValueError(f"its class names are not in tokens {other}")
    if any(ids[:len(fixed)] != fixed for ids in rows):
        raise ValueError(f"it was not trained with {texts([fixed])[0]!r} behind its learned tokens:"
                         " give its words by --ctx-init, or --ctx-init '' for none")
    return rows


def texts(rows):
    """Lists of token ids -> their texts, in lower case, a space between all words and signs."""
    tokenizer = clip_model.Tokenizer()
    symbols = {i: symbol for symbol, i in tokenizer.ids.items()}
    bytes_of = {symbol: b for b, symbol in tokenizer.byte_symbol.items()}
    words = ["".join(symbols[i] for i in ids).split("</w>") for ids in rows]
    return [b" ".join(bytes(bytes_of[c] for c in word) for word in of_one).decode(
        errors="replace").strip() for of_one in words]


def choose_classes(dataset, K):
    """Which of a dataset's classes K trained ones are -> "all" or "base", or "", and their names.

    Where the number K is not known (None), the usual ones: base, where the dataset is halved.
    """
    base, novel = data.halves(len(dataset.classnames))
    parts, name = {"all": base + novel, "base": base}, dataset.name
    part = next((part for part, labels in parts.items() if len(labels) == K), "")
    if K is None:
        part = "base" if dataset.base_novel else "all"
        print(f"note      the file doesn't tell its classes: taken for {part} of {name}'s")
    elif not part:
        print(f"note      it was trained on {K} classes, not on all or base of {name} "
              f"({len(parts['all'])}, {len(base)}): none is base or novel, and {name} is left out")
    return part, [dataset.classnames[k] for k in parts.get(part, ())]


def check_classes(learner, rows, dataset):
    """ValueError where the class names in a file, if there, are not those of the learner."""
    for k, (name, ids) in enumerate(zip(learner.classnames, rows or (), strict=bool(rows))):
        if clip_model.prompt_ids(learner.prompt(name))[1 + learner.n_replaced:] != ids:
            raise ValueError(f"it was trained on other classes than {dataset.name} has: number "
                             f"{k + 1} is {texts([ids[:-1]])[0]!r}, there {name!r}: give the "
                             "--dataset that it was trained on, or none")


def load(args, dataset):
    """-> learner with a file's tensors, settings as train.py's, and the dataset or UNKNOWN."""
    tensors, epoch = read(args.source)
    method = "maple" if "proj.weight" in tensors else "coop"
    method = "cocoop" if "meta_net.linear1.weight" in tensors else method
    depth = 1 + sum(name.startswith("compound_prompts_text.") for name in tensors)
    built = prompts.resolve(method, n_ctx=tensors["ctx"].shape[-2], ctx_init=args.ctx_init,
                            prompt_depth=depth if method == "maple" else None,
                            class_specific=tensors["ctx"].ndim == 3)
    usual = {768: "ViT-L/14"}.get(tensors["ctx"].shape[-1], "ViT-B/16")     # by its tokens' width
    backbone = args.backbone or ("tiny" if dataset.embedded else usual)
    clip, weights_sha256 = clip_model.load(backbone), clip_model.fingerprint(backbone)
    fixed = clip_model.prompt_ids(built["ctx_init"])[1:-1][built["n_ctx"]:]     # MaPLe's "of a"
    rows = read_classes(tensors, clip, backbone, fixed)
    of_each = rows or (tensors["ctx"] if tensors["ctx"].ndim == 3 else None)
    K = None if of_each is None else len(of_each)
    part, names = choose_classes(dataset, K) if args.dataset else ("", [])
    if not part and not rows:
        raise ValueError("it holds no class names: give the --dataset that it was trained on")
    if not part:
        dataset, part = UNKNOWN, "all"
        names = [text.removesuffix(".").strip()
                 for text in texts([ids[len(fixed):-1] for ids in rows])]
    train.check_words(clip, names)
    if args.class_place != "end" and method != "coop":
        raise ValueError(f"--class-place belongs to CoOp's prompts, not to {method}'s")
    built["class_place"] = args.class_place
    learner = prompts.build(method, clip, names, **built)
    prompts.load_trainable(learner, tensors)
    check_classes(learner, rows, dataset)
    options = vars(train.parser().parse_args([])).keys()
    return learner, argparse.Namespace(**{
        name: None for name in options if name not in train.NOT_SETTINGS} | built | {
        "method": method, "label": method, "epochs": epoch, "draw_seed": 1, "classes": part,
        "backbone": train.full_path(backbone, [*clip_model.MODELS, "tiny"]),
        "weights_sha256": weights_sha256, "data_root": train.full_path(args.data_root, ()),
        "dataset": "unknown" if dataset is UNKNOWN else train.full_path(args.dataset, data.NAMES),
        "trained_classes": names, "class_counts": [None] * len(names),      # a file has no counts
        "checkpoint": f"{args.source.name}, {clip_model.file_sha256(args.source)}"}), dataset


def import_run(args):
    """The originals' file -> a run's folder, with the tensors, the settings and no numbers."""
    dataset = data.load(args.dataset, args.data_root) if args.dataset else UNKNOWN
    try:
        learner, settings, dataset = load(args, dataset)
    except ValueError as error:
        raise ValueError(f"{args.source}: {error}") from None
    with train.claim(args.out, None, settings) as folder:
        shown = [learner.show_prompt(name) for name in learner.classnames]
        train.write_json(folder / "run.json", vars(settings) | {"prompts": shown})
        if dataset.own:
            data.write(folder / "split.json", data.split_text(dataset))
        train.save_prompts(folder, learner, settings)
        result = train.result_of(settings, dataset, learner, tuned={}, zeroshot={})
        train.write_json(folder / "result.json", result)
    print(f"{settings.method}, epoch {settings.epochs or 'unknown'}, {len(shown)} classes: "
          f"{shown[0]}")
    if settings.method == "coop":       # Open point: CLASS_TOKEN_POSITION is in no tensor
        print(f"note      the class name is taken to stand at the {args.class_place}: the file "
              "doesn't say where; --class-place says otherwise")
    more = " --task cross-dataset --targets DATASET" if dataset is UNKNOWN else ""
    if not more and not dataset.official_split:
        print("note      not the papers' split: pictures that trained it may be tested on")
    print(f"saved in {folder}; nothing is measured yet: python evaluate.py {folder}{more}")


def export_run(run, out):
    """A run's folder -> a checkpoint of the originals' form at `out`.

    Their load_model() in trainers/*.py reads state_dict and epoch and loads with strict=False:
    CLIP's weights and the buffers may be absent. Dassl prints val_result as a number. Without an
    optimizer their --resume can't go on from it.
    """
    data.check_output("--out", out)
    settings, learned = evaluate.read_prompts(run)
    method = settings["method"]
    if method not in FOLDER:
        raise ValueError(f"{run} is a run of {method}, which learns nothing")
    result, prefix = train.read_json(run / "result.json"), "prompt_learner." * (method == "maple")
    content = {"state_dict": {prefix + name: tensor for name, tensor in learned.items()},
               "epoch": settings.get("epochs") or 0, "optimizer": None, "scheduler": None,
               "val_result": float(result.get("base") or result.get("all") or 0)}
    data.write(out, clip_model.as_bytes(content))
    print(f"saved in {out}: {method}, {len(learned)} tensors; the original looks for it in "
          f"{FOLDER[method]}/ under model.pth.tar-<epoch>")


def main(argv=None):
    p = data.Parser(description="A checkpoint of the original CoOp, CoCoOp or MaPLe into a run's "
                                "folder, or a run's folder into such a checkpoint.")
    p.add_argument("source", type=Path, metavar="FILE|RUN", help="model.pth.tar-N, or a folder")
    p.add_argument("--out", type=Path, required=True, help="the run's folder, or the file")
    add = p.add_argument_group("for a file alone; a run's folder says it itself").add_argument
    add("--dataset", help="that it was trained on, or a folder of pictures (none: its class names "
                          "are read from the file, for other datasets and photos)")
    add("--data-root", default="data", help="folder of the datasets (%(default)s)")
    add("--backbone", help="the CLIP that it was trained on (ViT-B/16; for the world tiny)")
    add("--class-place", choices=["end", "middle", "front"], default="end",
        help="where CoOp's prompts have the class name: CLASS_TOKEN_POSITION (%(default)s)")
    add("--ctx-init", help="words that its tokens started from, '' for none (as in train.py)")

    def job():
        args = p.parse_args(argv)
        if args.source.is_file():
            return import_run(args)
        if not args.source.is_dir():
            raise FileNotFoundError(f"{args.source}: no such file; expected a checkpoint of CoOp, "
                                    "CoCoOp or MaPLe, as model.pth.tar-5, or a run's folder")
        for name in ("dataset", "backbone", "ctx_init"):
            if getattr(args, name) is not None:
                raise ValueError(f"--{name.replace('_', '-')} goes with a file; {args.source} is a "
                                 "run's folder and says it itself")
        return export_run(args.source, args.out)

    return data.run_script(job, "interrupted; nothing was saved")


if __name__ == "__main__":
    sys.exit(main())
