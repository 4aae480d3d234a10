"""Makes bpe_merges.txt.gz: the byte-pair merges of CLIP's tokenizer, the most frequent first.

    python assets/make_bpe_merges.py

The merges are data, not code. Source: the file bpe_simple_vocab_16e6.txt.gz as the PyPI package
open_clip_torch ships it (MIT licence; the file is OpenAI's, published with CLIP under the MIT
licence). That file lists 262,144 merges under one header line; CLIP's vocabulary of 49,408 = 256
bytes + 256 bytes that end a word + 48,894 merges + 2 special tokens uses the first 48,894, and only
these are kept.
"""
import gzip
import hashlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import data
from assets.make_imagenet_names import main, read_from_wheel

NUM_MERGES = 49408 - 2 * 256 - 2
TARGET = Path(__file__).with_name("bpe_merges.txt.gz")


def run():
    packed, wheel = read_from_wheel("open_clip_torch", "open_clip/bpe_simple_vocab_16e6.txt.gz")
    merges = gzip.decompress(packed).decode("utf-8").split("\n")[1:]    # line 0 is a header
    if len(merges) < NUM_MERGES:
        raise ValueError(f"expected {NUM_MERGES} merges or more in {wheel}, got {len(merges)}")
    kept = ("\n".join(merges[:NUM_MERGES]) + "\n").encode("utf-8")
    data.write(TARGET, gzip.compress(kept, 9, mtime=0))
    print(f"{TARGET.name}: {NUM_MERGES} merges from {wheel}, {TARGET.stat().st_size} bytes, "
          f"sha256 of the text {hashlib.sha256(kept).hexdigest()}")


if __name__ == "__main__":
    sys.exit(main(run, __doc__))
