"""Makes bpe_merges.txt.gz: the byte-pair merges of CLIP's tokenizer, one merge a line, most frequent first.

    python assets/make_bpe_merges.py

The merges are data, not code. Source: the file bpe_simple_vocab_16e6.txt.gz as the PyPI package open_clip_torch ships
it (MIT licence; the file is OpenAI's, published with CLIP under the MIT licence). That file lists 262,144 merges under
one header line; CLIP's vocabulary of 49,408 = 256 bytes + 256 bytes that end a word + 48,894 merges + 2 special tokens
uses the first 48,894, and only these are kept.
"""
import gzip
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

NUM_MERGES = 49408 - 2 * 256 - 2
OUT = Path(__file__).with_name("bpe_merges.txt.gz")


def main():
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, "open_clip_torch"],
                       check=True)
        wheel = zipfile.ZipFile(next(Path(folder).glob("*.whl")))
        merges = gzip.decompress(wheel.read("open_clip/bpe_simple_vocab_16e6.txt.gz")).decode("utf-8").split("\n")
    kept = "\n".join(merges[1:1 + NUM_MERGES]) + "\n"           # line 0 is a header
    part = OUT.with_suffix(".part")
    part.write_bytes(gzip.compress(kept.encode("utf-8"), 9, mtime=0))
    os.replace(part, OUT)
    print(f"{OUT.name}: {NUM_MERGES} merges, {OUT.stat().st_size} bytes, "
          f"sha256 of the text {hashlib.sha256(kept.encode('utf-8')).hexdigest()}")


if __name__ == "__main__":
    main()
