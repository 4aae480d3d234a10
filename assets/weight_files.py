"""Weights files: fetched, compared with their sums, read without running anything in them."""
import hashlib
import http.client
import io
import math
import os
import urllib.error
import urllib.request
import warnings
import zipfile
from pathlib import Path

import filelock  # which torch needs too, so it is always there
import torch
from tqdm import tqdm

CACHE = Path("~/.cache/clip").expanduser()      # where OpenAI's own package puts its files
URL = "https://openaipublic.azureedge.net/clip/models"
TIMEOUT = 30                                    # seconds without a byte until a download is broken
MODELS = {                                      # name: (SHA-256 of the file, file)
    "ViT-B/32": ("40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af", "ViT-B-32.pt"),
    "ViT-B/16": ("5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f", "ViT-B-16.pt"),
    "ViT-L/14": ("b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836", "ViT-L-14.pt"),
    "ViT-L/14@336px": ("3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02",
                       "ViT-L-14-336px.pt"),
}
# Beyond these it is damage: OpenAI's models are made for float16, whose numbers end at 65504, and
# its training keeps 1 / lambda at 100 at most
MAX_WEIGHT, MAX_SCALE = 1e4, 1e3


def read_state_dict(path):
    """Names and tensors of a weights file; no code in it is run."""
    try:
        # both kinds of file are zip archives in current torch; only TorchScript's has this member
        names = zipfile.ZipFile(path).namelist() if zipfile.is_zipfile(path) else []
        if any(name.endswith("/constants.pkl") for name in names):
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*torch.jit.load.*")
                return torch.jit.load(str(path), map_location="cpu").state_dict()
        state = read(path)
    except PermissionError:
        raise
    except Exception as error:                  # a damaged file raises any of half a dozen types
        raise ValueError("not a weights file, or a truncated one; expected a TorchScript archive or"
                         " a state dict saved by torch.save; download it again") from error
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not (isinstance(state, dict) and all(
            isinstance(name, str) and torch.is_tensor(tensor) and not tensor.is_meta
            for name, tensor in state.items())):
        raise ValueError("holds no state dict (names and tensors); expected CLIP weights under "
                         "OpenAI's names")
    return state


def check(name, tensor):
    """ValueError where a tensor holds what no weight can be. Of the meta device only its kind."""
    if tensor.layout != torch.strided or tensor.dtype not in (torch.float16, torch.bfloat16,
                                                              torch.float32, torch.float64):
        raise ValueError(f"{name} is a {tensor.layout} tensor of {tensor.dtype}, expected a dense "
                         "one of floating point numbers")
    if tensor.nbytes > tensor.untyped_storage().nbytes():
        raise ValueError(f"{name} has the shape {tuple(tensor.shape)}, but fewer numbers")
    if tensor.is_meta or not tensor.numel():
        return
    low, high = -MAX_WEIGHT, MAX_WEIGHT
    if name == "logit_scale":
        low, high = 0, math.log(MAX_SCALE)
    least, most = tensor.aminmax()
    if not (low <= least and most <= high):     # nan fails any comparison, and aminmax hands it on
        wrong = tensor[~((low <= tensor) & (tensor <= high))][0].item()
        raise ValueError(f"{name} holds {wrong:g}, expected numbers from {low:g} to {high:g}: "
                         "is it damaged?")


def shorten(text, most=120):
    """What came from outside, on its way into an error line."""
    return text if len(text) <= most else text[:most - 3] + "..."


def read(path):
    """What torch.save wrote, on the CPU; no code in it is run, and torch's warnings are not said.

    Any of a dozen exceptions where the file is damaged: torch itself does not compare the sums that
    it wrote, so a flipped bit would pass.
    """
    if zipfile.is_zipfile(path) and zipfile.ZipFile(path).testzip():
        raise ValueError("a part of it has a wrong checksum")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.load(path, map_location="cpu", weights_only=True)


def saved(content):
    """What torch.save would write, as bytes."""
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def checksum(tensors):
    """SHA-256 over named tensors: names, types, shapes and bytes, in order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def sha256(path):
    """Of a file's bytes, as hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def download(checksum, file):
    """OpenAI's weights file in CACHE, fetched if it is not there -> its path.

    An interrupted download goes on next time; of two processes at once one fetches, one waits.
    Raises FileNotFoundError without a network, ValueError where the SHA-256 is wrong.
    """
    path, url = CACHE / file, f"{URL}/{checksum}/{file}"
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        try:
            with filelock.FileLock(path.with_suffix(".lock")):
                if not path.exists():           # no other process fetched it meanwhile
                    _fetch(url, path, checksum)
        except (OSError, http.client.HTTPException) as error:   # URLError is an OSError
            reason = shorten(str(getattr(error, "reason", error)).strip())
            raise FileNotFoundError(f"could not download {file} ({reason}): run again with a "
                                    f"network, or put the file from {url} into {CACHE}") from error
    if sha256(path) != checksum:
        raise ValueError(f"{path} has a wrong SHA-256, expected {checksum}: delete it and run "
                         "again to download it anew")
    return path


def _fetch(url, path, checksum):
    """url -> path, once its SHA-256 is right. What came of a broken download waits in a .part."""
    part, fresh = path.with_suffix(".part"), path.with_suffix(".fresh")
    try:
        came = _receive(url, part, fresh)
        if sha256(came) != checksum:
            came.unlink()
            raise ValueError(f"{url} came with a wrong SHA-256 and was deleted; run again to "
                             "download it anew")
        os.replace(came, path)
        part.unlink(missing_ok=True)
    finally:
        fresh.unlink(missing_ok=True)


def _receive(url, part, fresh):
    """What is behind the bytes of `part` -> part; where the server starts over, all -> fresh."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if have and error.code == 416:
            return part                         # nothing left to fetch: the sum decides
        raise
    with answer:
        sent = answer.headers.get("Content-Range", "")
        if answer.status == 206 and not sent.startswith(f"bytes {have}-"):
            raise OSError(f"asked for the bytes from {have} on, got {sent or 'others'}")
        came = part
        if have and answer.status != 206:       # a server that can't resume, or a page of errors
            came, have = fresh, 0
        total = have + (answer.length or 0)
        if sent.rpartition("/")[2].isdecimal():                 # of "bytes 5-9/10"
            total = int(sent.rpartition("/")[2])
        bar = tqdm(total=total or None, initial=have, unit="B", unit_scale=True, desc=part.stem)
        with bar, open(came, "ab" if have else "wb") as out:
            while block := answer.read1(1 << 16):
                out.write(block)
                out.flush()                     # a kill or a stalled server loses one block at most
                bar.update(len(block))
            if out.tell() < total:
                raise OSError(f"the connection ended after {out.tell()} of {total} bytes; the rest "
                              "is fetched next time")
    return came
