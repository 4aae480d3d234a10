"""Build imagenet.tsv: for each of ImageNet's 1000 classes its WordNet id, a tab, and the class name CLIP uses.

    python assets/make_imagenet_names.py

Both lists come out of published Python packages, downloaded by pip but not installed (no torch is imported):

    timm             timm/data/_info/imagenet_synsets.txt   the 1000 WordNet ids in label order   Apache-2.0
    open_clip_torch  open_clip/zero_shot_metadata.py        OpenAI's curated English names        MIT

    timm: Copyright Ross Wightman. open_clip: Copyright (c) 2012-2021 Gabriel Ilharco, Mitchell Wortsman and others;
    the names were first published with CLIP, Copyright (c) 2021 OpenAI, MIT.
"""
import ast
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

TARGET = Path(__file__).with_name("imagenet.tsv")


def read_from_wheel(package, member, folder):
    """The text of one file inside the newest wheel of a package."""
    subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
                    "--dest", folder, package], check=True)
    wheel = next(Path(folder).glob(f"{package}-*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(member).decode("utf-8"), wheel.name


def assigned_value(source, name):
    """The literal assigned to `name` at the top level of a Python source, which is parsed and never run."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and any(getattr(target, "id", None) == name for target in node.targets):
            return ast.literal_eval(node.value)
    raise ValueError(f"no top-level {name} = ... in this source; has the package moved it?")


def main():
    with tempfile.TemporaryDirectory() as folder:
        synsets, timm_wheel = read_from_wheel("timm", "timm/data/_info/imagenet_synsets.txt", folder)
        metadata, open_clip_wheel = read_from_wheel("open_clip_torch", "open_clip/zero_shot_metadata.py", folder)
    wnids = synsets.split()
    names = assigned_value(metadata, "IMAGENET_CLASSNAMES")
    # Label order is the order of sorted ids: ImageFolder, CoOp and CLIP's list all rest on it.
    if not len(wnids) == len(names) == 1000 or wnids != sorted(set(wnids)):
        raise ValueError(f"expected 1000 ascending ids and 1000 names, got {len(wnids)} and {len(names)}")
    text = "".join(f"{wnid}\t{name}\n" for wnid, name in zip(wnids, names))
    scratch = TARGET.with_suffix(".tmp")
    scratch.write_text(text, encoding="utf-8", newline="\n")
    os.replace(scratch, TARGET)
    print(f"{TARGET.name}: {len(wnids)} lines from {timm_wheel} and {open_clip_wheel}")
    print(f"sha256 {hashlib.sha256(text.encode()).hexdigest()}")


if __name__ == "__main__":
    main()
