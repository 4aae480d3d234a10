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


def read_from_wheel(package, member):
    """The bytes of one file inside the newest wheel of a package, which pip fetches."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
                   "--only-binary=:all:", "--dest", folder, package]
        if subprocess.run(command).returncode:
            raise OSError(f"pip could not download {package}")
        wheel, = Path(folder).glob("*.whl")
        print(f"from {wheel.name}: {member}")
        with zipfile.ZipFile(wheel) as archive:
            if member not in archive.namelist():
                raise ValueError(f"{wheel.name} holds no {member}; has the package moved it?")
            return archive.read(member)


def run():
    wnids = read_from_wheel("timm", "timm/data/_info/imagenet_synsets.txt").decode().split()
    metadata = read_from_wheel("open_clip_torch", "open_clip/zero_shot_metadata.py").decode()
    names = next((ast.literal_eval(node.value) for node in ast.parse(metadata).body     # never run
                  if isinstance(node, ast.Assign)
                  and ast.unparse(node.targets[0]) == "IMAGENET_CLASSNAMES"), ())
    # Label order is the order of sorted ids: ImageFolder, CoOp and CLIP's list all rest on it.
    if not len(wnids) == len(names) == 1000 or wnids != sorted(set(wnids)):
        raise ValueError(f"expected 1000 ascending ids and 1000 names, got {len(wnids)} ids and "
                         f"{len(names)} names; have the packages moved them?")
    packed = read_from_wheel("open_clip_torch", "open_clip/bpe_simple_vocab_16e6.txt.gz")
    merges = gzip.decompress(packed).decode().split("\n")[1:]           # line 0 is a header
    if len(merges) < NUM_MERGES:
        raise ValueError(f"expected {NUM_MERGES} merges or more, got {len(merges)}")
    table = "".join(f"{wnid}\t{name}\n" for wnid, name in zip(wnids, names, strict=True)).encode()
    text = ("\n".join(merges[:NUM_MERGES]) + "\n").encode()
    for name, plain, kept in (("imagenet.tsv", table, table),
                              ("bpe_merges.txt.gz", text, gzip.compress(text, 9, mtime=0))):
        data.write(Path(__file__).with_name(name), kept)
        print(f"{name}: sha256 of the text {hashlib.sha256(plain).hexdigest()}")


def main(argv=None):
    p = data.Parser(description=__doc__.splitlines()[0])

    def job():
        p.parse_args(argv)
        run()

    return data.run_script(job)


if __name__ == "__main__":
    sys.exit(main())
