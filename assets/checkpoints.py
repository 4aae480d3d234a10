"""Checkpoints as the original CoOp, CoCoOp and MaPLe write and read them.

    python evaluate.py --checkpoint output/.../prompt_learner/model.pth.tar-50 --dataset eurosat
    python assets/checkpoints.py RUN --out prompt_learner/model.pth.tar-50      # a run of ours

From CoOp (Dassl): torch.save of a dictionary, the tensors under "state_dict", beside them epoch,
val_result, optimizer and scheduler. The names:

    CoOp     ctx (b, w), or (K, b, w) where each class has its own      in prompt_learner/
    CoCoOp   ctx (b, w), meta_net.linear1/2.weight/bias                 in prompt_learner/
    MaPLe    prompt_learner. before ctx (b, w), proj.weight/bias,       in MultiModalPromptLearner/
             compound_prompts_text.0.. and compound_prompt_projections.0..; CLIP itself besides

and for all three token_prefix and token_suffix, the embedded rest of the prompts of the classes
that were trained. The originals pass over these two when they load, and so do we; but they tell
whether CLIP and the prompt's words are the right ones, and that is checked.

A scheduler with a warm-up is saved with whole Python objects in it, val_result of some versions is
a numpy number: torch.load(weights_only=True) refuses both. Here IGNORED names such objects, and an
empty stand-in takes their place. So no code of a file is run, and none of numpy's or torch's
optimisers either; a file that names anything else is refused.

Open point: a file doesn't say where the class name stands in CoOp's prompt. Here it is at the end,
as in the papers' scripts.
"""
import json
import re
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))      # when it runs as a script

import clip_model
import data
import prompts
from assets import files, saved, weight_files

OPTIONS = ("method", "backbone", "dataset", "ctx_init")         # that go with --checkpoint alone
LEARNED = r"ctx|meta_net\..+|proj\.(weight|bias)|compound_prompt.+"
FOLDER = {"coop": "prompt_learner", "cocoop": "prompt_learner", "maple": "MultiModalPromptLearner"}


# Reading -----------------------------------------------------------------------------------------

class Ignored:
    """Stands where a file has an object that nobody reads."""

    def __init__(self, *_):
        pass

    def __setstate__(self, _):
        pass


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

    FileNotFoundError where there is no file, ValueError where it is none of the three methods'.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected a checkpoint of CoOp, CoCoOp or "
                                "MaPLe, as model.pth.tar-5")
    try:
        with torch.serialization.safe_globals(IGNORED):
            content = weight_files.read(path)
        state = content.get("state_dict", content)
        tensors = {name.removeprefix("module.").removeprefix("prompt_learner."): tensor
                   for name, tensor in state.items()}
    except PermissionError:
        raise
    except Exception as error:                  # a damaged file raises any of a dozen types
        raise ValueError(f"{path}: {reason(error)}") from None
    if any("VPT" in name for name in tensors):
        raise ValueError(f"{path}: holds visual prompts that nothing projects (VPT, independent V-L"
                         " prompting), expected CoOp, CoCoOp or MaPLe")
    kept = {name: tensor for name, tensor in tensors.items()
            if re.fullmatch(LEARNED + "|token_prefix|token_suffix", name)}
    for name, tensor in kept.items():
        check_tensor(path, name, tensor)
    if "ctx" not in kept or kept["ctx"].ndim not in (2, 3):
        raise ValueError(f"{path}: holds no learned tokens (ctx of 2 or 3 dimensions); expected a "
                         "checkpoint of CoOp, CoCoOp or MaPLe")
    epoch = content.get("epoch")
    return kept, epoch if type(epoch) is int else "unknown"


def reason(error):
    """Why torch.load refused a file, as an end of a line."""
    asked = re.search(r"GLOBAL (\S+)", str(error))
    if asked:
        return (f"asks to run {asked[1][:80]}, which learned tensors have no need of; nothing in "
                "it was run. Get the file from where you trust it")
    return ("not a checkpoint, or a damaged one; expected a dictionary with state_dict, as "
            "torch.save writes it. Copy it again")


def check_tensor(path, name, tensor):
    """ValueError unless it is dense, of floating point, whole and finite."""
    sound = (torch.is_tensor(tensor) and tensor.layout == torch.strided and not tensor.is_meta
             and tensor.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
             and tensor.nbytes <= tensor.untyped_storage().nbytes())
    if not sound or not tensor.isfinite().all():
        raise ValueError(f"{path}: {name[:60]} is no dense tensor of finite numbers; copy the file "
                         "again, or train again")


def method_of(tensors):
    """Whose learned tensors these are."""
    if "meta_net.linear1.weight" in tensors:
        return "cocoop"
    return "maple" if "proj.weight" in tensors else "coop"


def settings_of(tensors, method, ctx_init):
    """What prompts.build() takes, from the shapes; ctx_init: the words, None for the method's."""
    depth = 1 + sum(name.startswith("compound_prompts_text.") for name in tensors)
    return prompts.resolve(method, n_ctx=tensors["ctx"].shape[-2], ctx_init=ctx_init,
                           prompt_depth=depth if method == "maple" else None,
                           class_specific=tensors["ctx"].ndim == 3)


# A learner for evaluate.py -----------------------------------------------------------------------

def add_options(add):
    """Options of evaluate.py; add: a group's add_argument."""
    add("--checkpoint", type=Path, metavar="FILE",
        help="evaluate the originals' model.pth.tar-N in place of a run's folder")
    add("--method", choices=list(FOLDER), help="whose it is (read from its tensors)")
    add("--dataset", help="the dataset that it was trained on, or a folder of pictures")
    add("--backbone", help="the CLIP that it was trained on (ViT-B/16; for the world tiny)")
    add("--ctx-init", help="words that its tokens started from, '' for none (as in train.py)")


def check(args):
    """Refuse options that do not go together."""
    if bool(args.run) == bool(args.checkpoint):
        raise ValueError("expected a run's folder, or --checkpoint FILE, one of the two")
    odd = [name for name in OPTIONS if getattr(args, name) is not None and not args.checkpoint]
    if odd:
        raise ValueError(f"--{odd[0].replace('_', '-')} goes with --checkpoint; a run's folder "
                         "says it itself")
    if not args.checkpoint:
        return
    for name in ("table", "report"):
        if getattr(args, name):
            raise ValueError(f"--{name} is made of runs' folders: leave out --checkpoint")
    if not (args.dataset or args.classnames or args.task not in (None, "base-to-novel")):
        raise ValueError("--checkpoint needs --dataset, whose classes are to be told apart")


def place(args):
    """Where evaluate.py puts what it finds: a folder beside the file."""
    name = data.short_name(args.dataset) if args.dataset else "other"
    return args.checkpoint.with_name(f"{args.checkpoint.name}-{name}")


def load(args, device, dtype, classnames=None):
    """-> learner with a checkpoint's tensors, and settings as train.py would have saved them.

    Raises ValueError with the file's name where its tensors don't fit method, CLIP or words.
    """
    path, (tensors, epoch) = args.checkpoint, read(args.checkpoint)
    method = method_of(tensors)
    if args.method not in (None, method):
        raise ValueError(f"{path} holds the tensors of {method}, not of --method {args.method}")
    dataset = data.load(args.dataset, args.data_root or "data") if args.dataset else None
    backbone = args.backbone or ("tiny" if dataset and dataset.embedded else "ViT-B/16")
    clip = clip_model.load(backbone, device, dtype)
    halved = dataset and (dataset.base_novel or args.classes in ("base", "novel"))
    if dataset and tensors["ctx"].ndim == 3:                    # a context for each class
        halved = len(tensors["ctx"]) < len(dataset.classnames)
    names = trained_classes(dataset, halved)
    try:
        built = settings_of(tensors, method, args.ctx_init)
        learner = prompts.build(method, clip, classnames or names, **built)
        fill(learner, tensors, backbone)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    print(f"{method} of {path}, epoch {epoch}: {learner.show_prompt(learner.classnames[0])}")
    if dataset and not dataset.official_split:
        print("note      the split is not that of the papers: pictures that trained the checkpoint "
              "may be tested on")
    return learner, {**dict.fromkeys(saved.SETTINGS), **built, "method": method, "label": method,
                     "backbone": backbone, "dataset": args.dataset,
                     "data_root": args.data_root or "data", "draw_seed": 1,
                     "classes": "base" if halved else "all", "trained_classes": names,
                     "class_counts": [None] * len(names)}       # the file doesn't say how many


def trained_classes(dataset, halved):
    """Names of the classes that a checkpoint was trained on: the base half, or all."""
    if dataset is None:
        return ["object"]                                       # others take its place
    if not halved:
        return dataset.classnames
    return [dataset.classnames[k] for k in data.halves(len(dataset.classnames))[0]]


def fill(learner, tensors, backbone):
    """Copy the tensors in; ValueError where they belong to another CLIP, or other words."""
    table, ctx = learner.clip.token_embedding.weight, tensors["ctx"]
    if ctx.shape[-1] != table.shape[1]:
        raise ValueError(f"its tokens are {ctx.shape[-1]} wide, those of CLIP {backbone} "
                         f"{table.shape[1]}: give the --backbone that it was trained on")
    prompts.load_trainable(learner, tensors)
    start, *rest, _ = clip_model.prompt_ids(learner.template.removesuffix(" {}."))
    fixed = rest[learner.n_learned:]                            # "of a" in MaPLe's prompts
    if not stand_there(tensors.get("token_prefix"), table[[start]]):
        raise ValueError(f"its start token is not that of CLIP {backbone}: give the --backbone "
                         "that it was trained on")
    if not stand_there(tensors.get("token_suffix"), table[fixed]):
        words = " ".join(learner.template.split(" ")[learner.n_learned:-1])
        raise ValueError(f"it was not trained with {words!r} behind its learned tokens: give its "
                         "words by --ctx-init, or --ctx-init '' for none")


def stand_there(buffer, embeddings):
    """Whether a buffer (K, T, w), if it is there, begins with these embeddings (n, w)."""
    if buffer is None or not len(embeddings):
        return True
    if buffer.ndim != 3 or buffer.shape[1] < len(embeddings) or not len(buffer):
        return False
    found = buffer[0, :len(embeddings)].to(embeddings.device).float()
    apart = (found - embeddings.float()).norm(dim=1)
    return bool((apart <= 0.02 * embeddings.float().norm(dim=1)).all())     # half precision: 0.001


# Writing -----------------------------------------------------------------------------------------

def as_original(settings, learned, val_result):
    """A run's tensors as the dictionary that the originals load.

    Made for load_model() of CoOp's trainers/coop.py and cocoop.py and of MaPLe's trainers/maple.py:
    they take the file from <folder>/<FOLDER[method]>/model.pth.tar-<epoch>, read state_dict and
    epoch, and load with strict=False, so CLIP's weights and the buffers may be absent. There is no
    optimizer: their --resume can't go on from it. Dassl's own load_model prints val_result as a
    number, so it is one.
    """
    prefix = "prompt_learner." if settings["method"] == "maple" else ""
    return {"state_dict": {prefix + name: tensor for name, tensor in learned.items()},
            "epoch": settings.get("epochs", 0), "optimizer": None, "scheduler": None,
            "val_result": val_result}


def export(run, out):
    """A run's folder -> a checkpoint of the originals' form at `out`."""
    if not (run / "result.json").is_file() or not (run / "prompts.pt").is_file():
        raise FileNotFoundError(f"{run} is no finished run: expected result.json and prompts.pt in "
                                "it, as train.py leaves them")
    settings, learned = saved.read_prompts(run)
    method = settings["method"]
    if method not in FOLDER:
        raise ValueError(f"{run} is a run of {method}, which learns nothing; choose one of "
                         f"{', '.join(FOLDER)}")
    files.check_output("--out", out)
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    accuracy = result.get("base", result.get("all")) or 0.0
    files.write(out, weight_files.saved(as_original(settings, learned, float(accuracy))))
    print(f"saved in {out}: {method}, {len(learned)} tensors; the original looks for it in "
          f"{FOLDER[method]}/ under model.pth.tar-<epoch>")


def main(argv=None):
    p = files.Parser(description="A run's learned tensors as a checkpoint that the original CoOp, "
                                 "CoCoOp or MaPLe loads.")
    p.add_argument("run", type=Path, help="folder that train.py made")
    p.add_argument("--out", type=Path, required=True, help="the file, as model.pth.tar-5")

    def job():
        args = p.parse_args(argv)
        export(args.run, args.out)

    return files.exit_code(job, "interrupted; nothing was saved")


if __name__ == "__main__":
    sys.exit(main())
