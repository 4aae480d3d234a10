"""What a finished run's folder says, read with distrust: prompts.pt and drawn.csv."""
import csv
import json

import torch

from assets import weight_files

SETTINGS = {                    # what prompts.pt must say of its run, and in which form
    "method": str, "backbone": str, "n_ctx": (int, type(None)), "ctx_init": (str, type(None)),
    "prompt_depth": (int, type(None)), "dataset": str, "data_root": str, "classes": str,
    "trained_classes": list, "class_counts": list, "draw_seed": int, "label": str,
    "classnames_file": (str, type(None)),
}


def read_prompts(folder):
    """A run's prompts.pt -> its settings and {name: learned tensor}.

    Raises ValueError where it is not what train.py writes, where a tensor is not finite, or where
    the tensors are not those that result.json was measured with.
    """
    path = folder / "prompts.pt"
    try:
        run = weight_files.read(path)
        learned, settings = run["learned"], run["settings"]
        check_settings(settings, folder / "run.json")
        for name, tensor in learned.items():
            dense = tensor.layout == torch.strided and tensor.is_contiguous()    # not expanded
            if tensor.dtype != torch.float32 or not dense:
                raise TypeError(f"{str(name)[:40]} is no dense float32 tensor")
            if not tensor.isfinite().all():
                raise ValueError(f"{str(name)[:40]} is not finite")
        kept = json.loads((folder / "result.json").read_text(encoding="utf-8")) if (
            folder / "result.json").is_file() else {}
        if kept.get("prompts_sha256") not in (None, weight_files.checksum(learned)):
            raise ValueError("its tensors are not those that result.json was measured with")
    except Exception as error:                      # a damaged file raises any of a dozen types
        raise ValueError(f"{path}: not a run's learned tensors ({str(error)[:120]}); train again"
                         ) from error
    return settings, learned


def check_settings(settings, run_json):
    """TypeError, KeyError or ValueError where they are none, or not those in a run's run.json."""
    for name, kinds in SETTINGS.items():
        if not isinstance(settings[name], kinds):
            raise TypeError(f"{name} is {str(settings[name])[:40]!r}")
    for name, n in zip(settings["trained_classes"], settings["class_counts"], strict=True):
        if type(name) is not str or type(n) is not int:
            raise TypeError(f"{str(name)[:40]!r} and {str(n)[:40]!r} are no class and its images")
    told = json.loads(run_json.read_text(encoding="utf-8")) if run_json.is_file() else settings
    for name in settings.keys() - {"data_root", "device"}:          # a run may go on elsewhere
        if json.dumps(settings[name], default=str) != json.dumps(told[name], default=str):
            raise ValueError(f"its {name[:40]} is not that of run.json")


def read_drawn(path):
    """Names of the pictures that a run trained on."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return {picture for picture, _ in csv.reader(file, strict=True)}
    except (ValueError, csv.Error) as error:        # not UTF-8, not two columns, a very long field
        raise ValueError(f"{path}: expected a picture and its class in each row ({error}); train "
                         "again") from None
