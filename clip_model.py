"""CLIP with a Vision Transformer, written for reading, and the way weights get in.

The encoders G_v and G_l of Sec. 3.1:

    import clip_model
    clip = clip_model.load("ViT-B/16")          # or "tiny", or the path of a weights file
    z = clip.encode_image(images)               # (B, 3, res, res) -> (B, d)
    g = clip.encode_text(clip_model.tokenize(["a photo of a cat."]))        # (N, 77) -> (N, d)

    B  images            N  patches of an image     w  width of a tower (its heads = w / 64)
    T  tokens            b  learned tokens          d  joint feature size, 512 for ViT-B/16

Parameter names are OpenAI's, so that OpenAI's weights load as they are. Features leave the
encoders as the projections give them; the prompt learners turn them into the unit vectors z and g
of the paper.
"""
import errno
import functools
import gzip
import hashlib
import html
import http.client
import io
import json
import math
import os
import pickle  # only to read without running anything, see ArchiveUnpickler
import shutil
import time
import urllib.request
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import filelock  # which torch needs too, so it is always there
import ftfy
import regex
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

CONTEXT_LENGTH, VOCABULARY = 77, 49408
ASSETS = Path(__file__).parent / "assets"


# -------------------------------------------------------------------------------- the transformer

class Attention(nn.Module):
    """Multi-head self-attention with torch.nn.MultiheadAttention's parameter names."""

    def __init__(self, width):
        super().__init__()
        self.heads = width // 64
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))   # query, key, value
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x, mask=None, read=slice(None)):
        """x (B, T, w) -> the same for the positions `read` only.

        mask (T, T): what is added to q k^T / 8: 0 where the row may look at the column, else -inf
        """
        w = x.shape[-1]
        q = F.linear(x[:, read], self.in_proj_weight[:w], self.in_proj_bias[:w])
        k, v = F.linear(x, self.in_proj_weight[w:], self.in_proj_bias[w:]).chunk(2, dim=-1)
        q, k, v = (y.unflatten(-1, (self.heads, 64)).transpose(1, 2) for y in (q, k, v))
        if mask is not None:
            mask = mask[read]
        y = attend(q, k, v, mask)                       # softmax(q k^T / 8) v: (B, heads, T, 64)
        return self.out_proj(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Residual attention block: x + attention(ln_1(x)), then x + mlp(ln_2(x))."""

    def __init__(self, width):
        super().__init__()
        self.attn = Attention(width)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width),
                                  "c_proj": nn.Linear(4 * width, width)})
        self.ln_2 = nn.LayerNorm(width)
        self.activation = quick_gelu                    # or another, see load

    def forward(self, x, mask=None, read=slice(None)):
        x = x[:, read] + self.attn(self.ln_1(x), mask, read)
        y = self.activation(self.mlp.c_fc(self.ln_2(x)))                # y * sigmoid(1.702 y)
        return x + self.mlp.c_proj(y)


class Transformer(nn.Module):
    """Blocks one after the other."""

    def __init__(self, width, layers):
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width) for _ in range(layers))

    def forward(self, x, mask=None, *, read=slice(None), deep_prompts=(), slots=None):
        """x (B, T, w) -> (B, number of read positions, w).

        mask           (T, T): True where the row may look at the column; None: everywhere
        deep_prompts   tensors (b, w); the i-th replaces what stands at the positions `slots`
                       before layer i + 1. From MaPLe: prompts of depth J enter the first J layers
        read           positions whose output is wanted. Only the last layer can use it: there the
                       other positions feed keys and values but nobody reads their result, so their
                       query and MLP are left out. Exact.
        """
        if mask is not None:            # as the numbers that are added, once for all layers
            mask = x.new_zeros(mask.shape).masked_fill_(~mask, -torch.inf)
        for i, block in enumerate(self.resblocks):
            if 0 < i <= len(deep_prompts):
                prompt = deep_prompts[i - 1].to(x.dtype).expand(len(x), -1, -1)         # (B, b, w)
                x = x.index_copy(1, slots, prompt)
            last = i == len(self.resblocks) - 1
            x = block(x, mask, read if last else slice(None))
        return x


# ----------------------------------------------------------------------------------- the encoders

class VisionTransformer(nn.Module):
    """The image encoder G_v: class token, patches, visual prompts if any; the first is read."""

    def __init__(self, resolution, patch_size, width, layers, embed_dim):
        super().__init__()
        self.resolution = resolution
        tokens = (resolution // patch_size) ** 2 + 1
        self.conv1 = nn.Conv2d(3, width, patch_size, stride=patch_size, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty(tokens, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(width, layers)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.empty(width, embed_dim))

    def forward(self, images, visual_prompts=()):
        """images (B, 3, res, res) -> (B, d).

        visual_prompts: tensors (b, w), the v_1..v_b of Sec. 3.1, then those of the deeper layers.
        From MaPLe: the first is appended after the patches, without a position, before ln_pre.
        """
        x = self.conv1(images.to(self.conv1.weight.dtype)).flatten(2).mT                # (B, N, w)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], dim=1)
        x = x + self.positional_embedding                                           # (B, 1 + N, w)
        slots = None
        if visual_prompts:
            v = visual_prompts[0].to(x.dtype)
            slots = torch.arange(x.shape[1], x.shape[1] + len(v), device=x.device)
            x = torch.cat([x, v.expand(len(x), -1, -1)], dim=1)                 # (B, 1 + N + b, w)
        x = self.transformer(self.ln_pre(x), read=slice(0, 1),
                             deep_prompts=visual_prompts[1:], slots=slots)              # (B, 1, w)
        return self.ln_post(x[:, 0]) @ self.proj


class CLIP(nn.Module):
    """Both encoders and the temperature. Build it with build() or load()."""

    def __init__(self, resolution, patch_size, vision_width, vision_layers,
                 text_width, text_layers, vocab_size, embed_dim):
        super().__init__()
        self.visual = VisionTransformer(resolution, patch_size, vision_width, vision_layers,
                                        embed_dim)
        self.transformer = Transformer(text_width, text_layers)
        self.token_embedding = nn.Embedding(vocab_size, text_width)
        self.positional_embedding = nn.Parameter(torch.empty(CONTEXT_LENGTH, text_width))
        self.ln_final = nn.LayerNorm(text_width)
        self.text_projection = nn.Parameter(torch.empty(text_width, embed_dim))
        self.logit_scale = nn.Parameter(torch.tensor(4.6051702))                        # ln 100

    @property
    def temperature(self):
        """lambda of Eq. (1). CLIP stores log(1 / lambda) as `logit_scale`; here it is converted."""
        return torch.exp(-self.logit_scale.float())

    def encode_image(self, images, visual_prompts=()):
        """G_v: pixels (B, 3, res, res), normalised by CLIP's mean and std -> (B, d), any length."""
        return few_at_a_time(self.visual, images, visual_prompts)

    def encode_text(self, tokens):
        """G_l for plain texts: (N, 77) token ids of tokenize() -> (N, d), any length.

        The transformer is causal and the feature is read at the end token (the highest id), so
        what stands behind the longest text's end never matters: the tokens are cut there. Exact.
        """
        ends = tokens.argmax(dim=-1)
        tokens = tokens[:, :int(ends.max()) + 1]
        T = tokens.shape[1]
        mask = torch.ones(T, T, dtype=torch.bool, device=tokens.device).tril()
        x = self.token_embedding(tokens) + self.positional_embedding[:T]                # (N, T, w)
        x = self.transformer(x, mask)[torch.arange(len(x), device=x.device), ends]      # (N, w)
        return self.ln_final(x) @ self.text_projection


# ----------------------------------------------------------------------------- getting weights in

# Beyond these it is damage: OpenAI's models are made for float16, whose numbers end at 65504, and
# its training keeps 1 / lambda at 100 at most
MAX_WEIGHT, MAX_SCALE = 1e4, 1e3
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
OTHERS = {                                      # what a tensor's name shows to be another thing
    r"lora_": "LoRA's additions: merge them into their CLIP and save its state_dict()",
    r"logit_bias$": "the weights of a SigLIP, which is no CLIP",
    r"visual\.(trunk\.)?blocks\.": "the weights of an EVA-CLIP or another tower of timm's",
    r"visual\.layer1\.": "the weights of a ResNet CLIP"}
FIRST = ("visual.class_embedding", "vision_model.embeddings.class_embedding")   # OpenAI's, theirs
INTEGERS = ("input_resolution", "context_length", "vocab_size", "position_ids")
TRANSFORMERS = (                                # what transformers' names have for OpenAI's
    ("text_model.", ""), ("vision_model.", "visual."), ("embeddings.", ""), ("fc1", "c_fc"),
    ("encoder.layers.", "transformer.resblocks."), ("self_attn.", "attn."), ("fc2", "c_proj"),
    ("layer_norm1", "ln_1"), ("layer_norm2", "ln_2"), ("pre_layrnorm", "ln_pre"),
    ("post_layernorm", "ln_post"), ("final_layer_norm", "ln_final"), ("patch_embedding", "conv1"),
    ("position_embedding.weight", "positional_embedding"),
    ("visual_projection.weight", "visual.proj"), ("text_projection.weight", "text_projection"))


def load(name_or_path, device="cpu", dtype=torch.float32, activation="quick_gelu"):
    """CLIP by name (MODELS, or "tiny"), or from a weights file: see read_state_dict.

    activation: OpenAI's "quick_gelu", or plain "gelu", as OpenCLIP's own may need: no file says so.
    Weights become `dtype`, the temperature float32. FileNotFoundError, or ValueError for no CLIP.
    """
    path = find(name_or_path)
    known = str(name_or_path) == "tiny" or fingerprint(name_or_path) in (
        row[0] for row in MODELS.values())
    if activation not in ACTIVATIONS or known and activation != "quick_gelu":
        raise ValueError(f"{path} with the activation {activation!r}: OpenAI's models have "
                         "quick_gelu, some of OpenCLIP's have gelu")
    try:
        clip = build(read_state_dict(path))
    except ValueError as error:
        if "allocate" in str(error.__cause__):          # torch's word for it
            raise MemoryError(f"not enough memory for the weights in {path}") from error
        raise ValueError(f"{path}: {error}") from error
    for block in (*clip.visual.transformer.resblocks, *clip.transformer.resblocks):
        block.activation = ACTIVATIONS[activation]
    if not known and activation == "quick_gelu":
        say(f"{path} is none of OpenAI's files: QuickGELU is assumed, as in those; if it was "
            "trained with plain GELU, as many of OpenCLIP's, its activation is gelu")
    scale = clip.logit_scale.detach().float()
    clip = clip.to(device=device, dtype=dtype)
    clip.logit_scale = nn.Parameter(scale.to(device))
    return clip


def build(state_dict):
    """State dict under OpenAI's or transformers' names -> CLIP of its dtype, on its device.

    Sizes are read from the shapes. ValueError where the tensors are not those of a ViT CLIP, and
    with the tensor's name and value where one is no weight.
    """
    try:
        state = openai_names(state_dict)
        if "token_embedding.words" in state:    # assets/tiny_clip.pt has vectors for these ids only
            words, vectors = state.pop("token_embedding.words"), state["token_embedding.weight"]
            check_weight("token_embedding.weight", vectors)
            state["token_embedding.weight"] = vectors.new_zeros(
                VOCABULARY, vectors.shape[1]).index_copy(0, words, vectors)
        with torch.device("meta"):              # no memory yet: the given tensors become parameters
            clip = CLIP(**sizes_of(state))
        for name, _ in clip.named_parameters():
            if name in state:
                check_weight(name, state[name])
        clip.load_state_dict(state, assign=True)
    except (LookupError, AttributeError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split()).removeprefix("Error(s) in loading state_dict for ")
        if isinstance(error, KeyError):
            reason += " is missing"
        raise ValueError("not the state dict of a ViT CLIP under OpenAI's or transformers' names: "
                         + shorten(reason)) from error
    return clip.eval()


def openai_names(state):
    """A CLIP's tensors by OpenAI's names, without what stands before them ("module.", say).

    Of transformers' layout q, k, v are stacked and projections transposed.
    """
    for pattern, what in OTHERS.items():
        if any(regex.search(pattern, name) for name in state):
            raise ValueError(f"these are {what}; this companion covers the ViT models")
    prefixes = {name.removesuffix(first) for first in FIRST for name in state
                if name.endswith(first)} or {""}
    if len(prefixes) > 1:
        raise ValueError(f"holds several CLIPs, {shorten(str(sorted(prefixes)))}: save one alone")
    prefix, = prefixes
    state = {name.removeprefix(prefix): tensor for name, tensor in state.items()
             if name.startswith(prefix) and not name.endswith(INTEGERS)}
    if FIRST[1] not in state:
        return state
    found = {functools.reduce(lambda text, pair: text.replace(*pair), TRANSFORMERS, name): tensor
             for name, tensor in state.items()}
    for name in [name for name in found if ".q_proj." in name]:
        parts = [found.pop(name.replace(".q_", f".{x}_")) for x in "qkv"]
        found[name.replace("q_proj.", "in_proj_")] = torch.cat(parts)
    for name in ("visual.proj", "text_projection"):
        found[name] = found[name].mT.contiguous()       # laid out alike, so that sums are too
    return found


def sizes_of(state):
    """Arguments of CLIP from the shapes of its tensors."""
    def layers(tower):
        start = tower + "transformer.resblocks."
        return len({name[len(start):].split(".")[0] for name in state if name.startswith(start)})

    conv, joint = state["visual.conv1.weight"].shape, state["text_projection"].shape
    side = round((len(state["visual.positional_embedding"]) - 1) ** 0.5)
    sizes = {"resolution": side * conv[-1], "patch_size": conv[-1],
             "vision_width": conv[0], "vision_layers": layers("visual."),
             "text_width": joint[0], "text_layers": layers(""),
             "vocab_size": VOCABULARY, "embed_dim": joint[1]}
    widths = sizes["vision_width"], sizes["text_width"]
    if min(sizes.values()) < 1 or any(w % 64 for w in widths) or widths[0] > 1024:
        raise ValueError("sizes must be at least 1 and widths multiples of 64 (heads = width / 64; "
                         f"ViT-H, -g and -G, wider than 1024, have other heads), got {sizes}")
    return sizes


def check_weight(name, tensor):
    """ValueError where a tensor holds what no weight can be. Of the meta device only its kind."""
    check_dense(name, tensor)
    if tensor.is_meta:
        return
    low, high = -MAX_WEIGHT, MAX_WEIGHT
    if name == "logit_scale":
        low, high = 0, math.log(MAX_SCALE)
    wrong = tensor[~((low <= tensor) & (tensor <= high))]       # nan fails any comparison
    if len(wrong):
        raise ValueError(f"{name} holds {wrong[0].item():g}, expected numbers from {low:g} to "
                         f"{high:g}: is it damaged?")


def check_dense(name, tensor):
    """ValueError unless it is a dense tensor of floating point numbers, all of them there."""
    if tensor.layout != torch.strided or tensor.dtype not in FLOATS:
        raise ValueError(f"{name[:60]} is a {tensor.layout} tensor of {tensor.dtype}, expected a "
                         "dense one of floating point numbers")
    if tensor.nbytes > tensor.untyped_storage().nbytes():
        raise ValueError(f"{name[:60]} has the shape {tuple(tensor.shape)}, but fewer numbers")


def pick_device(name):
    """--device auto|cpu|cuda|mps -> torch.device; ValueError where the machine has none such.

    Of several GPUs each of torchrun's processes takes its own.
    """
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(),
               "cpu": True}
    if name == "auto":
        name = next(n for n in present if present[n])
    if not present[name]:
        raise ValueError(f"--device {name}: this machine has none; use auto or cpu")
    if name == "cuda":
        name = f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count()}"
    return torch.device(name)


def pick_precision(name, device):
    """--precision auto|float32|bfloat16|float16 -> the type of the frozen CLIP's numbers.

    auto: on a GPU float16, the originals' there and that of OpenAI's files; elsewhere float32. One
    line where a CPU computes the chosen type slower than float32: many have no bfloat16.
    """
    if name == "auto":
        name = {"cuda": "float16"}.get(device.type, "float32")
    dtype = getattr(torch, name)
    if device.type == "cpu" and dtype != torch.float32:
        times = slowness(dtype)
        if times > 1.2:
            say(f"note      this CPU computes {name} {times:.1f} times slower than float32")
    return dtype


def slowness(dtype):
    """Time of a matrix product in a type over that in float32, on the CPU; takes some hundredths
    of a second."""
    def seconds(kind):
        x, best = torch.ones(512, 512, dtype=kind), math.inf
        for _ in range(4):
            start = time.perf_counter()
            x @ x
            best = min(best, time.perf_counter() - start)
        return best

    return seconds(dtype) / seconds(torch.float32)


# ---------------------------------------------------------------------------------- weights files

CACHE = Path("~/.cache/clip").expanduser()      # where OpenAI's own package puts its files
TIMEOUT = 30                                    # seconds without a byte until a download is broken
# SHA-256, file of OpenAI's; SHA-256, repository, revision of timm's; SHA-256, name of transformers'
MODELS = {
    "ViT-B/32": ("40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af", "ViT-B-32.pt",
        "e6d1bd7789aa45192b3bf90570a789b478bae1b74ebcce7eddd908e83a2b7c31",
        "vit_base_patch32_clip_224.openai", "a6f597a30f7b82c51704746581f9a4e41421e878",
        "a63082132ba4f97a80bea76823f544493bffa8082296d62d71581a4feff1576f", "base-patch32"),
    "ViT-B/16": ("5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f", "ViT-B-16.pt",
        "4b8699299b1e8997753c64b052ba32031449d5d853f55a039148560ee02b820f",
        "vit_base_patch16_clip_224.openai", "977e3dd0ec55ab8da155f2fbeb6b5f54948b6e3d",
        "ec89c7b09c749a60aae3c9cd910516f24b58214a7df060b48962d14c469cfbf0", "base-patch16"),
    "ViT-L/14": ("b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836", "ViT-L-14.pt",
        "9ce2e8a8ebfff3793d7d375ad6d3c35cb9aebf3de7ace0fc7308accab7cd207e",
        "vit_large_patch14_clip_224.openai", "18d0535469bb561bf468d76c1d73aa35156c922b",
        "a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb", "large-patch14"),
    "ViT-L/14@336px": ("3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02",
        "ViT-L-14-336px.pt", "fbc415c3d0d7b79faed8f5ccfb740c32b7c4f5ffe7283b851f89c6231c01a8e0",
        "vit_large_patch14_clip_336.openai", "81e38efc4637de5023b10e75a7f9bd1c6fa6b010",
        "c6032c2e0caae3dc2d4fba35535fa6307dbb49df59c7e182b1bc4b3329b81801", "large-patch14-336"),
}
ADDRESSES = (   # asked in turn; the numbers are columns of MODELS, hub is HF_ENDPOINT
    "https://openaipublic.azureedge.net/clip/models/{0}/{1}",
    "{hub}/jinaai/clip-models/resolve/main/{1}",
    "https://clip-as-service.s3.us-east-2.amazonaws.com/models/torch/{1}",
    "{hub}/timm/{3}/resolve/{4}/open_clip_model.safetensors")
WRAPPERS = ("state_dict", "model_state_dict", "model")
SAFE_TYPES = {"F16": torch.half, "BF16": torch.bfloat16, "F32": torch.float, "I64": torch.long}
STORAGES = {("torch", f"{dtype}Storage"): getattr(torch, dtype.lower())
            for dtype in ("Half", "BFloat16", "Float", "Double", "Int", "Long")}
say = functools.cache(functools.partial(print, flush=True))             # once a process


def find(name_or_path):
    """The weights file of a name or path, downloaded where it has to be; see load."""
    name = str(name_or_path)
    if regex.fullmatch(r"RN\d+(x\d+)?", name):
        raise ValueError(f"{name} is a ResNet; this companion covers the ViT models: "
                         + ", ".join(MODELS))
    if name in MODELS:
        return find_model(name)
    path = {"tiny": ASSETS / "tiny_clip.pt"}.get(name, Path(name))
    if not path.is_file():
        raise FileNotFoundError(f"no CLIP model or file {name!r}: give one of {', '.join(MODELS)}, "
                                "tiny, or the path of a weights file")
    return path


def find_model(name):
    """A model's file, on this machine or else downloaded into CACHE; its SHA-256 decides."""
    sha256, file, _, timm, *_, theirs = MODELS[name]
    env, own, tried = os.environ.get, CACHE / file, []
    home = env("HF_HOME") or (env("XDG_CACHE_HOME") or "~/.cache") + "/huggingface"
    cache = Path(env("HF_HUB_CACHE") or f"{home}/hub").expanduser()
    hub = (env("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    for path in (own, own.with_suffix(".safetensors"),
                 *cache.glob(f"models--timm--{timm}/snapshots/*/open_clip_model.s*"),
                 *cache.glob(f"models--openai--clip-vit-{theirs}/snapshots/*/*model.[bs]*")):
        if path.is_file() and fingerprint(path) == sha256:
            say(f"{name}: {path}")
            return path
    for address in ADDRESSES:
        url = address.format(*MODELS[name], hub=hub)
        path = own.with_suffix(Path(url).suffix)
        try:
            receive(url, path, sha256)
            say(f"{name}: {url}, now {path}")
            return path
        except (OSError, http.client.HTTPException) as error:           # URLError is an OSError
            tried.append(f"{url} ({shorten(str(getattr(error, 'reason', error)).strip(), 80)})")
    raise FileNotFoundError(
        f"{name} is neither in {CACHE} nor in {cache}, and could not be downloaded: "
        f"{'; '.join(tried)}. Run again with a network, or put {file} from one of these into "
        f"{CACHE}, or the last, renamed {own.stem}.safetensors; other weights: --backbone FILE")


def receive(url, path, sha256):
    """Fetch a file; of two processes at once one fetches. OSError where nothing right comes."""
    part = Path(f"{path}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{path}.lock"):
        if path.exists() and fingerprint(path) == sha256:
            return                              # another process fetched it meanwhile
        if path.exists():
            raise OSError(f"the {path.name} there has a wrong SHA-256: delete it")
        if not part.exists() or fingerprint(part) != sha256:            # else it lacks a name only
            append(url, part)
        if fingerprint(part) != sha256:
            part.unlink()
            raise OSError("came with a wrong SHA-256 and was deleted")
        os.replace(part, path)


def append(url, part):
    """Write what is behind the bytes of `part` behind them; all where there are none. Where the
    server does not go on there (a page of errors, say) they are not lost."""
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        raise OSError("HF_HUB_OFFLINE is set")
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer, open(part, "ab") as out:
        if have and not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            raise OSError(f"does not go on behind {have} bytes; delete {part} to begin anew")
        total = have + (answer.length or 0)
        with tqdm.wrapattr(out, "write", total, initial=have, desc=part.stem) as bar:
            shutil.copyfileobj(answer, bar)
        if out.tell() < total:
            raise OSError(f"ended after {out.tell()} of {total} bytes: run again for the rest")


def fingerprint(name_or_path):
    """SHA-256 of a weights file; for every known file of a model that of OpenAI's."""
    if name_or_path in MODELS:
        return MODELS[name_or_path][0]
    sha256 = file_sha256(find(name_or_path))
    return next((row[0] for row in MODELS.values() if sha256 in row), sha256)


def read_state_dict(path):
    """Names and tensors of OpenAI's archive, of what torch.save wrote of a state dict, perhaps in
    a wrapper, or of a safetensors file; no code in it is run."""
    try:
        read = read_tensors
        with open(path, "rb") as file:
            if file.read(9)[8:] == b"{":        # behind the length of the header
                read = read_safetensors
        # both kinds of torch's are zip archives by now; only TorchScript's has this member
        if zipfile.is_zipfile(path) and any(
                name.endswith("/constants.pkl") for name in zipfile.ZipFile(path).namelist()):
            read = read_archive
        state = read(path)
    except Exception as error:                  # a damaged file raises any of half a dozen types
        if isinstance(error, OSError | MemoryError) and getattr(error, "errno", 0) != errno.EINVAL:
            raise                               # no fault of the file
        if stranger := regex.search(r"Unsupported (global: GLOBAL (\S+)|operand 8\b)", str(error)):
            raise ValueError(f"holds {stranger[2] or 'an ONNX model'}, not tensors alone: "
                             "save the state_dict() of the PyTorch model and give that") from error
        raise ValueError("not a weights file, or a truncated one; expected OpenAI's archive, a "
                         "state dict or safetensors; download it again") from error
    for name in WRAPPERS * 3:                   # one in another, but not for ever
        if isinstance(state, dict) and name in state:
            state = state[name]
    if not (isinstance(state, dict) and all(
            isinstance(name, str) and torch.is_tensor(tensor) and not tensor.is_meta
            for name, tensor in state.items())):
        raise ValueError("holds no state dict (names and tensors); expected CLIP weights under "
                         "OpenAI's or transformers' names")
    return state


def read_safetensors(path):
    """{name: tensor} of a safetensors file: the length of a JSON header, the header, and the
    numbers of one tensor behind those of another, each name once."""
    left, at, tensors = os.stat(path).st_size - 8, 0, {}
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(min(length, 10 ** 8)), object_pairs_hook=list)
        entries = [(name, dict(entry)) for name, entry in header if name != "__metadata__"]
        for name, entry in sorted(entries, key=lambda item: item[1]["data_offsets"]):
            (begin, end), dtype = entry["data_offsets"], SAFE_TYPES[entry["dtype"]]
            size = math.prod(entry["shape"]) * dtype.itemsize
            if name in tensors or begin != at or end - begin != size:
                raise ValueError(f"{name} stands twice, or is not in its place, or of another size")
            numbers = torch.frombuffer(bytearray(file.read(size)), dtype=dtype)
            tensors[name], at = numbers.reshape(entry["shape"]), end
    if length + at != left:
        raise ValueError("it does not end with its last tensor")
    return tensors


def sound_zip(path):
    """A zip archive whose members have their right checksums, and the size that the file has: torch
    stores numbers plain, and a small file that unpacks to a large one would fill the memory."""
    archive = zipfile.ZipFile(path)
    if sum(member.file_size for member in archive.infolist()) > 2 * Path(path).stat().st_size:
        raise ValueError("it is compressed")
    if archive.testzip():
        raise ValueError("a part of it has a wrong checksum")
    return archive


def read_archive(path):
    """{name: tensor} of a TorchScript archive, in which torch.jit.load would run its code.

    It is a zip: data.pkl holds the modules as a pickle, data/N the numbers of tensor N. A module
    becomes a StandIn; a tensor's name is the path of attributes that leads to it.
    """
    archive = sound_zip(path)
    pickled, = (name for name in archive.namelist() if name.count("/") == 1
                and name.endswith("/data.pkl"))
    folder = pickled.removesuffix("data.pkl") + "data/"
    unpickler = ArchiveUnpickler(io.BytesIO(archive.read(pickled)))
    unpickler.numbers = functools.cache(lambda key: bytearray(archive.read(folder + key)))
    tensors, modules, seen = {}, [("", unpickler.load())], set()
    while modules:
        prefix, module = modules.pop()
        if id(module) in seen:                  # it may be inside itself
            continue
        seen.add(id(module))
        for name, value in module.items():
            if torch.is_tensor(value):
                tensors[prefix + name] = value
            elif isinstance(value, StandIn):
                modules.append((prefix + name + ".", value))
    return tensors


class StandIn(dict):
    """What an archive's object becomes, whatever its class: its attributes by name, no code."""
    __setstate__ = dict.update

    def __init__(self, *_):
        pass


class ArchiveUnpickler(pickle._Unpickler):
    """Knows tensors; everything else is a StandIn. numbers(key): a storage.

    pickle's form in Python: its memo can't be made to fill the memory. Tuples become lists, which
    can't be keys: the hash of tuples that are nested, each twice in the next, takes for ever.
    """
    dispatch = dict(pickle._Unpickler.dispatch)
    dispatch[pickle.TUPLE[0]] = dispatch[pickle.LIST[0]]
    for n, opcode in enumerate((pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3), start=1):
        dispatch[opcode[0]] = lambda self, n=n: self.stack.__setitem__(
            slice(-n, None), [self.stack[-n:]])

    def find_class(self, module, name):
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self.tensor
        return STORAGES.get((module, name), StandIn)

    def persistent_load(self, storage):
        _, dtype, key, *_ = storage
        return torch.frombuffer(self.numbers(key), dtype=dtype)

    @staticmethod
    def tensor(numbers, offset, shape, strides, *_):
        shape, strides = torch.Size(shape), torch.Size(strides)         # integers, or TypeError
        last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        if min((offset, *shape, *strides)) < 0 or last >= len(numbers):
            raise ValueError("a tensor is larger than its numbers")
        return numbers.as_strided(shape, strides, offset)


def read_tensors(path):
    """What torch.save wrote, on the CPU; no code in it is run. Any of a dozen exceptions where the
    file is damaged: torch does not compare the sums that it wrote, so a flipped bit would pass."""
    if zipfile.is_zipfile(path):
        sound_zip(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.load(path, map_location="cpu", weights_only=True)


def as_bytes(content):
    """What torch.save would write."""
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def tensors_sha256(tensors):
    """SHA-256 over named tensors: names, types, shapes and bytes, in order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def file_sha256(path):
    """Of a file's bytes, as hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def shorten(text, most=120):
    """What came from outside, on its way into an error line."""
    return text if len(text) <= most else text[:most - 3] + "..."


# ---------------------------------------------------------------------------------- the tokenizer

class Tokenizer:
    """CLIP's byte-pair encoding (From CLIP: lower case, 49,408 ids)."""

    PATTERN = regex.compile(r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d"
                            r"|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+", regex.IGNORECASE)

    def __init__(self):
        # every byte gets a printable stand-in, so that merges can be kept as text: printable
        # Latin-1 stands for itself, the other 68 bytes get the code points from 256 on; the
        # vocabulary has them in this order
        printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
        others = [b for b in range(256) if b not in printable]
        self.byte_symbol = {b: chr(b) for b in printable}
        self.byte_symbol |= {b: chr(256 + i) for i, b in enumerate(others)}
        merges = gzip.decompress((ASSETS / "bpe_merges.txt.gz").read_bytes()).decode("utf-8")
        merges = [tuple(line.split()) for line in merges.split("\n")[:-1]]
        symbols = list(self.byte_symbol.values())
        vocabulary = symbols + [s + "</w>" for s in symbols] + ["".join(pair) for pair in merges]
        vocabulary += ["<|startoftext|>", "<|endoftext|>"]
        self.ids = {symbol: i for i, symbol in enumerate(vocabulary)}
        self.rank = {pair: i for i, pair in enumerate(merges)}
        self.start, self.end = len(vocabulary) - 2, len(vocabulary) - 1

    def encode(self, text):
        """text -> list of ids without start and end token."""
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
        text = " ".join(text.split()).lower()
        return [i for word in self.PATTERN.findall(text) for i in self._encode_word(word)]

    def _encode_word(self, word):
        if word in ("<|startoftext|>", "<|endoftext|>"):
            return [self.ids[word]]
        parts = [self.byte_symbol[b] for b in word.encode("utf-8")]
        parts[-1] += "</w>"
        while len(parts) > 1:           # join the most frequent adjacent pair until none is known
            pairs = zip(parts, parts[1:], strict=False)
            best = min(pairs, key=lambda pair: self.rank.get(pair, len(self.rank)))
            if best not in self.rank:
                break
            joined = []
            for part in parts:
                if joined and (joined[-1], part) == best:
                    joined[-1] += part
                else:
                    joined.append(part)
            parts = joined
        return [self.ids[part] for part in parts]


LONGEST_TEXT = 32 * CONTEXT_LENGTH              # no token stands for more than 32 bytes


tokenizer = functools.cache(Tokenizer)          # once a process: reading 48,894 merges takes time


def prompt_ids(text):
    """text -> list of ids with start and end token; ValueError where it exceeds 77 tokens."""
    if len(text) > LONGEST_TEXT:                # before minutes go into its pairs
        raise ValueError(f"{len(text)} characters where CLIP takes {CONTEXT_LENGTH} tokens: "
                         f"shorten {shorten(text)!r}")
    ids = [tokenizer().start, *tokenizer().encode(text), tokenizer().end]
    if len(ids) > CONTEXT_LENGTH:
        raise ValueError(f"{len(ids)} tokens where CLIP takes {CONTEXT_LENGTH}: shorten "
                         f"{shorten(text)!r}")
    return ids


def tokenize(texts):
    """Text or list of N texts -> LongTensor (N, 77): start token, ids, end token, zeros."""
    if isinstance(texts, str):
        texts = [texts]
    rows = torch.zeros(len(texts), CONTEXT_LENGTH, dtype=torch.long)
    for row, text in zip(rows, texts, strict=True):
        ids = prompt_ids(text)
        row[:len(ids)] = torch.tensor(ids)
    return rows


# -------------------------------------------------------------------------------- for speed alone

def quick_gelu(x):
    """x * sigmoid(1.702 x) as silu(1.702 x) / 1.702: autograd keeps one tensor instead of two."""
    return F.silu(1.702 * x).div_(1.702)


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": F.gelu}


def attend(q, k, v, mask=None):
    """softmax(q k^T / 8) v: (B, heads, T, 64) -> alike; mask as in Attention.

    Written out for bfloat16 on a CPU, where torch's fused form costs half as much again, and three
    times in the backward pass (measured on AVX-512 bfloat16).
    """
    if q.dtype != torch.bfloat16 or q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, mask)
    if mask is None:
        mask = q.new_zeros(1)
    scores = torch.baddbmm(mask, q.flatten(0, 1), k.flatten(0, 1).mT, alpha=1 / 8)
    return (scores.softmax(dim=-1) @ v.flatten(0, 1)).view(q.shape)


CACHED = 4 * 197 * 768      # numbers in a layer's input up to which a CPU is fastest: four images
                            # of ViT-B/16


def few_at_a_time(encoder, images, visual_prompts):
    """encoder(images, visual_prompts), sooner on a CPU. Images do not see each other.

    It takes few at a time, so that a layer's activations stay in its cache; where nothing is
    learned each core takes images of its own, and none waits for another within a layer.
    """
    few = max(1, CACHED // encoder.positional_embedding.numel())
    if images.device.type != "cpu" or len(images) <= few:
        return encoder(images, visual_prompts)
    cores = torch.get_num_threads()
    tensors = (images, *visual_prompts, *encoder.parameters())
    learned = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    if learned or len(images) < few * cores:
        return torch.cat([encoder(part, visual_prompts) for part in images.split(few)])
    rounds = -(-len(images) // (cores * few))
    parts = images.tensor_split(cores * rounds)                         # as many for each core
    encode = torch.no_grad()(lambda part: encoder(part, visual_prompts))
    with ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        features = torch.cat(list(pool.map(encode, parts)))
    torch.set_num_threads(cores)            # what a new thread starts with is what was set last
    return features
