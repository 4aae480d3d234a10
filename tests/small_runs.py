"""What tests of runs share: folders of pictures, small commands, calls as a user makes them."""
import contextlib
import csv
import hashlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from PIL import Image

import data
import train

SCRIPT = Path(train.__file__)
EUROSAT = data.ROWS["eurosat"].names                # {class folder: class name}


def picture(seed, size=32):
    """A picture of coarse coloured blocks, another for each seed."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, 256, (4, 4, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(blocks.numpy()).resize((size, size), Image.NEAREST)


def write_classes(folder, counts, ending="png"):
    """{class folder: number of pictures} -> these folders."""
    for c, (name, n) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for i in range(n):
            picture(1000 * c + i).save(folder / name / f"{name.split('/')[-1]}_{i + 1}.{ending}")
    return folder


def eurosat(root, split=False, n=20):
    """A EuroSAT-shaped folder under a data root, with a split file in CoOp's form or without.

    The split begins as CoOp's own does, or it would be taken for a private one.
    """
    folder = write_classes(root / "eurosat" / "2750", dict.fromkeys(EUROSAT, n), "jpg")
    first = folder.parent / "2750" / data.ROWS["eurosat"].first
    (folder / "AnnualCrop" / "AnnualCrop_1.jpg").rename(first)
    if split:
        content = {"train": [], "val": [], "test": []}
        for label, name in enumerate(EUROSAT):
            for i in range(n):
                part = "train" if i < 10 else "val" if i < 14 else "test"
                number = 1381 if (label, i) == (0, 0) else i + 1
                content[part].append([f"{name}/{name}_{number}.jpg", label, EUROSAT[name]])
        (root / "eurosat" / "split_zhou_EuroSAT.json").write_text(json.dumps(content))
    return folder


NAMED = "-n_ctx2-epochs1-backbonesmall"             # in a run's name what command() asks for


def command(place, archive, method="coop", **counts):
    """A command of a moment, without --out, and its folder of pictures, pets/."""
    pictures = write_classes(place / "pets", counts or {"cat": 8, "dog": 8})
    context = [] if method == "zeroshot" else ["--n-ctx", 2, "--epochs", 1]
    return ["--method", method, *context, "--dataset", pictures, "--backbone", archive]


def call(main, *argv):
    """-> exit code, stdout, stderr of main(argv)."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(word) for word in argv])
    return code, out.getvalue(), err.getvalue()


def done(*argv, main=train.main):
    """A command that must end well -> what it printed."""
    code, out, err = call(main, *argv)
    assert code == 0, err
    return out


def refused(*argv, main=train.main):
    """The one line with which a command is refused, exit code 2."""
    code, _, err = call(main, *argv)
    lines = err.replace("\r", "\n").strip().split("\n")     # a progress bar may stand before it
    assert code == 2 and lines[-1].startswith("error: "), err
    assert sum(line.startswith("error: ") for line in lines) == 1 and "Traceback" not in err
    return lines[-1]


def started(words, cwd, script=SCRIPT, **env):
    """A script in a process of its own."""
    return subprocess.Popen([sys.executable, str(script), *map(str, words)], cwd=cwd, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | env)


def read(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def told(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))


def result(run):
    return told(Path(run, "result.json"))


def files(folder):
    """{path in the folder: sum of its bytes}."""
    found = [p for p in Path(folder).rglob("*") if p.is_file()]
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in found}
