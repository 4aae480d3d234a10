"""CLIP with a Vision Transformer, written for reading: the encoders G_v and G_l of Sec. 3.1, and the way weights get in.

    import clip_model
    clip = clip_model.load("ViT-B/16")                      # or "tiny", an OpenAI archive, a plain state dict file
    z = clip.encode_image(images)                           # (B, 3, res, res) -> (B, d)
    g = clip.encode_text(clip_model.tokenize(["a photo of a cat."]))            # (N, 77) -> (N, d)

    B  images            N  patches of an image        w  width of a tower (its heads = w / 64)
    K  classes           T  token nodes of a tree      d  joint feature size, 512 for ViT-B/16

Parameter names are OpenAI's, so that OpenAI's weights load as they are. Features leave the encoders as the projections
give them; the prompt learners turn them into the unit vectors z and g of the paper.
"""
import gzip
import hashlib
import html
import http.client
import os
import urllib.error
import urllib.request
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ftfy
import regex
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm

CONTEXT_LENGTH, VOCABULARY = 77, 49408
ASSETS = Path(__file__).parent / "assets"
CACHE = Path("~/.cache/clip").expanduser()              # where OpenAI's own package puts its files
URL = "https://openaipublic.azureedge.net/clip/models"
MODELS = {                                              # name: (SHA-256 of the file, file)
    "ViT-B/32": ("40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af", "ViT-B-32.pt"),
    "ViT-B/16": ("5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f", "ViT-B-16.pt"),
    "ViT-L/14": ("b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836", "ViT-L-14.pt"),
    "ViT-L/14@336px": ("3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02", "ViT-L-14-336px.pt"),
}


# ------------------------------------------------------------------------------------------------------ the transformer

class Attention(nn.Module):
    """Multi-head self-attention with torch.nn.MultiheadAttention's parameter names."""

    def __init__(self, width):
        super().__init__()
        self.heads = width // 64
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))       # rows: query, key, value
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x, mask=None, read=slice(None)):
        """x (B, T, w); mask (T, T), True where the row may look at the column; output only for the positions `read`."""
        w = x.shape[-1]
        q = F.linear(x[:, read], self.in_proj_weight[:w], self.in_proj_bias[:w])
        k, v = F.linear(x, self.in_proj_weight[w:], self.in_proj_bias[w:]).chunk(2, dim=-1)
        q, k, v = (y.unflatten(-1, (self.heads, 64)).transpose(1, 2) for y in (q, k, v))        # (B, heads, T, 64)
        y = attend(q, k, v, None if mask is None else mask[read])
        return self.out_proj(y.transpose(1, 2).flatten(2))


def attend(q, k, v, mask=None):
    """softmax(q k^T / 8) v over heads of width 64: (B, heads, T, 64) -> alike; mask as in Attention.

    Written out for bfloat16 on a CPU, where torch's fused form costs half as much again, and three times in the backward
    pass (measured on AVX-512 bfloat16).
    """
    if q.dtype != torch.bfloat16 or q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, mask)
    hidden = q.new_zeros(1) if mask is None else q.new_zeros(mask.shape).masked_fill_(~mask, -torch.inf)
    scores = torch.baddbmm(hidden, q.flatten(0, 1), k.flatten(0, 1).mT, alpha=1 / 8)         # (B heads, T, T)
    return (scores.softmax(dim=-1) @ v.flatten(0, 1)).view(q.shape)


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), written as silu(1.702 x) / 1.702: the same number, but autograd keeps one tensor, not two."""

    def forward(self, x):
        return F.silu(1.702 * x).div_(1.702)


class Block(nn.Module):
    """Residual attention block: x + attention(ln_1(x)), then x + mlp(ln_2(x))."""

    def __init__(self, width):
        super().__init__()
        self.attn = Attention(width)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, 4 * width))
        self.mlp.add_module("gelu", QuickGELU())
        self.mlp.add_module("c_proj", nn.Linear(4 * width, width))
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x, mask=None, read=slice(None)):
        x = x[:, read] + self.attn(self.ln_1(x), mask, read)
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    def __init__(self, width, layers):
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width) for _ in range(layers))

    def forward(self, x, mask=None, *, read=slice(None), deep_prompts=(), slots=None):
        """x (B, T, w) -> (B, number of read positions, w).

        deep_prompts   tensors (b, w); the i-th replaces what stands at the positions `slots` before layer i + 1
                       From MaPLe: prompts of depth J enter the first J layers anew
        read           positions whose output is wanted. Only the last layer can use it: there the other positions
                       feed keys and values but nobody reads their result, so their query and MLP are left out. Exact.
        """
        last = len(self.resblocks) - 1
        for i, block in enumerate(self.resblocks):
            if 0 < i <= len(deep_prompts):
                prompt = deep_prompts[i - 1].to(x.dtype).expand(len(x), -1, -1)         # (B, b, w)
                x = x.index_copy(1, slots, prompt)
            x = block(x, mask, read if i == last else slice(None))
        return x


# ---------------------------------------------------------------------------------------------------------- the encoders

class VisionTransformer(nn.Module):
    """The image encoder G_v: patches, one class token, optional visual prompts; the class token is read."""

    def __init__(self, resolution, patch_size, width, layers, embed_dim):
        super().__init__()
        self.resolution = resolution
        self.conv1 = nn.Conv2d(3, width, patch_size, stride=patch_size, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty((resolution // patch_size) ** 2 + 1, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(width, layers)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.empty(width, embed_dim))

    def forward(self, images, visual_prompts=()):
        """images (B, 3, res, res); visual_prompts: tensors (b, w), v_1..v_b of Sec. 3.1 and the deeper layers' -> (B, d).

        From MaPLe: the first prompt is appended after the patches, without a position embedding, before ln_pre.
        """
        x = self.conv1(images.to(self.conv1.weight.dtype)).flatten(2).mT                # (B, N, w)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], dim=1) + self.positional_embedding
        slots = None
        if visual_prompts:
            v = visual_prompts[0].to(x.dtype)
            slots = torch.arange(len(v), device=x.device) + x.shape[1]
            x = torch.cat([x, v.expand(len(x), -1, -1)], dim=1)                         # (B, 1 + N + b, w)
        x = self.transformer(self.ln_pre(x), read=slice(0, 1), deep_prompts=visual_prompts[1:], slots=slots)
        return self.ln_post(x[:, 0]) @ self.proj


CACHED = 4 * 197 * 768          # numbers in a layer's input up to which a CPU is fastest: four images of ViT-B/16


class CLIP(nn.Module):
    """Both encoders and the temperature. Build it with build() or load()."""

    def __init__(self, resolution, patch_size, vision_width, vision_layers, text_width, text_layers, vocab_size, embed_dim):
        super().__init__()
        self.visual = VisionTransformer(resolution, patch_size, vision_width, vision_layers, embed_dim)
        self.transformer = Transformer(text_width, text_layers)
        self.token_embedding = nn.Embedding(vocab_size, text_width)
        self.positional_embedding = nn.Parameter(torch.empty(CONTEXT_LENGTH, text_width))
        self.ln_final = nn.LayerNorm(text_width)
        self.text_projection = nn.Parameter(torch.empty(text_width, embed_dim))
        self.logit_scale = nn.Parameter(torch.tensor(4.6051702))                        # ln 100

    @property
    def temperature(self):
        """lambda of Eq. (1). CLIP stores log(1 / lambda) as `logit_scale`; this is the one place where it is converted."""
        return torch.exp(-self.logit_scale.float())

    @property
    def dtype(self):
        return self.token_embedding.weight.dtype

    def encode_image(self, images, visual_prompts=()):
        """G_v: (B, 3, res, res) pixels, normalised by CLIP's mean and std -> (B, d), not of unit length.

        Images do not see each other. A CPU therefore takes few at a time, so that a layer's activations stay in its cache;
        where nothing is learned each core takes images of its own, and none waits for another within a layer.
        """
        few, cores = max(1, CACHED // self.visual.positional_embedding.numel()), torch.get_num_threads()
        if images.device.type != "cpu" or len(images) <= few:
            return self.visual(images, visual_prompts)
        encode = lambda part: self.visual(part, visual_prompts)
        tensors = (images, *visual_prompts, *self.visual.parameters())
        learned = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
        if learned or len(images) < few * cores:
            return torch.cat([encode(part) for part in images.split(few)])
        parts = images.tensor_split(cores * -(-len(images) // (cores * few)))           # as many for each core
        with ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            features = torch.cat(list(pool.map(torch.no_grad()(encode), parts)))
        torch.set_num_threads(cores)                            # what a new thread starts with is what was set last
        return features

    def encode_text(self, tokens):
        """G_l for plain texts: (N, 77) token ids of tokenize() -> (N, d), not of unit length.

        The transformer is causal and the feature is read at the end token (the highest id), so what stands behind the
        longest text's end never matters: the tokens are cut there. Exact.
        """
        ends = tokens.argmax(dim=-1)
        tokens = tokens[:, :int(ends.max()) + 1]
        n = tokens.shape[1]
        mask = torch.ones(n, n, dtype=torch.bool, device=tokens.device).tril()
        x = self.token_embedding(tokens) + self.positional_embedding[:n]
        x = self.transformer(x, mask)[torch.arange(len(x), device=x.device), ends]
        return self.ln_final(x) @ self.text_projection

    def encode_prompts(self, trees, text_tokens=None, deep_prompts=()):
        """G_l for prompts with learned tokens: -> (K, d), or (B, K, d) where text_tokens has one set per image.

        trees         list of PromptTree, which together hold the K classes
        text_tokens   (b, w) or (B, b, w): the vectors u_1..u_b that stand in the trees' slots
        deep_prompts  tensors (b, w) for the slots of the deeper layers
        """
        features = []
        batch = 1 if text_tokens is None else text_tokens[..., 0, 0].numel()
        crowded = torch.is_grad_enabled() and batch * sum(len(t.tokens) for t in trees) > CROWDED
        for tree in trees:
            if crowded:             # keep no activations, compute them again in the backward pass: the same gradients
                g = checkpoint(self._encode_tree, tree, text_tokens, deep_prompts, use_reentrant=False, preserve_rng_state=False)
            else:
                g = self._encode_tree(tree, text_tokens, deep_prompts)
            features.append(g)
        features = torch.cat(features, dim=1)                                           # (1 or B, K, d)
        return features if text_tokens is not None and text_tokens.ndim == 3 else features[0]

    def _encode_tree(self, tree, text_tokens, deep_prompts):
        x = self.token_embedding(tree.tokens)[None]                                     # (1, T, w)
        if text_tokens is not None:
            u = text_tokens.to(x.dtype)
            u = (u if u.ndim == 3 else u[None])[:, tree.rows]
            x = x.expand(len(u), -1, -1).index_copy(1, tree.slots, u)                   # (B, T, w)
        x = x + self.positional_embedding[tree.positions]
        x = self.transformer(x, tree.mask, read=tree.ends, deep_prompts=deep_prompts, slots=tree.slots)
        return self.ln_final(x) @ self.text_projection                                  # (B, K, d)


# ------------------------------------------------------------------------------------------- prompts that share a start

CROWDED = 8192      # token nodes in one training step beyond which activations are recomputed instead of kept
                    # (ViT-B/16 in float32 keeps about half a megabyte a node)


class PromptTree(nn.Module):
    """The prompts of some classes as a prefix tree: every token that several prompts start with alike stands once.

    Under a causal mask the state of a token depends on the tokens before it and on nothing else. Two prompts that start
    alike therefore have the same states along that start, in every layer, and one copy serves both. "<start> a photo of
    a" stands in the prompt of every class: it is computed once, and the cost grows with class-name tokens only. The tree
    is a sequence of nodes in which each node sees its ancestors (and itself). Exact; the textbook form, each prompt by
    itself with all 77 positions, is the oracle in tests/test_prompts.py.

    tokens, positions (T,)   what stands at a node, and how deep the node is
    mask (T, T)              True where the row's node may look at the column's
    ends (K,)                the end token of each prompt, where its feature is read
    slots, rows              nodes that hold learned vectors, and which row of the learned tensor stands there
    """

    def __init__(self, prompts):
        """prompts: K lists of token ids from start to end token; a negative id -1 - r stands for learned row r."""
        super().__init__()
        nodes = {}                                              # prefix: its place in the sequence
        for ids in prompts:
            for n in range(len(ids)):
                nodes.setdefault(tuple(ids[:n + 1]), len(nodes))
        ids = torch.tensor([prefix[-1] for prefix in nodes])
        mask = torch.zeros(len(nodes), len(nodes), dtype=torch.bool)
        for prefix, i in nodes.items():                         # a parent always stands before its children
            if len(prefix) > 1:
                mask[i] = mask[nodes[prefix[:-1]]]
            mask[i, i] = True
        slots = (ids < 0).nonzero()[:, 0]
        for name, value in (("tokens", ids.clamp(min=0)), ("mask", mask), ("slots", slots), ("rows", -1 - ids[slots]),
                            ("positions", torch.tensor([len(prefix) - 1 for prefix in nodes])),
                            ("ends", torch.tensor([nodes[tuple(ids)] for ids in prompts]))):
            self.register_buffer(name, value, persistent=False)


def plant_trees(prompts, max_nodes):
    """K prompts (see PromptTree) -> ModuleList of trees of at most max_nodes nodes, classes in order.

    One tree would do. Several keep the masked-out part of the attention small (it grows with the square of a tree) and
    let a step with many classes recompute one tree's activations at a time; a new tree costs a copy of the common start.
    """
    groups, nodes = [], set()
    for ids in prompts:
        new = {tuple(ids[:n + 1]) for n in range(len(ids))}
        if not groups or len(nodes | new) > max_nodes:
            groups.append([])
            nodes = set()
        groups[-1].append(ids)
        nodes |= new
    return nn.ModuleList(PromptTree(group) for group in groups)


# ----------------------------------------------------------------------------------------------------- getting weights in

def build(state_dict):
    """State dict under OpenAI's names -> CLIP of the same dtype on the same device; sizes are read from the shapes.

    Raises ValueError where the tensors are not those of a ViT CLIP.
    """
    state = {name.removeprefix("module."): tensor for name, tensor in state_dict.items()}
    for name in ("input_resolution", "context_length", "vocab_size"):                   # three integers in OpenAI's files
        state.pop(name, None)
    if any(name.startswith("visual.layer1.") for name in state):
        raise ValueError("these are the weights of a ResNet CLIP; this companion covers the ViT models: "
                         + ", ".join(MODELS))
    try:
        words = state.pop("token_embedding.words", None)        # assets/tiny_clip.pt has vectors for these ids only
        if words is not None:
            vectors = state["token_embedding.weight"]
            table = vectors.new_zeros(VOCABULARY, vectors.shape[1])
            state["token_embedding.weight"] = table.index_copy(0, words, vectors)
        for name, rows in (("positional_embedding", CONTEXT_LENGTH), ("token_embedding.weight", VOCABULARY)):
            if len(state[name]) != rows:                        # the tokenizer's
                raise ValueError(f"{name} must have {rows} rows, got {len(state[name])}")
        conv, joint = state["visual.conv1.weight"], state["text_projection"]
        side = round((len(state["visual.positional_embedding"]) - 1) ** 0.5)
        count = lambda start: len({n[len(start):].split(".")[0] for n in state if n.startswith(start)})     # layers
        sizes = dict(resolution=side * conv.shape[-1], patch_size=conv.shape[-1], vision_width=conv.shape[0],
                     vision_layers=count("visual.transformer.resblocks."), text_width=joint.shape[0],
                     text_layers=count("transformer.resblocks."), vocab_size=VOCABULARY, embed_dim=joint.shape[1])
        if min(sizes.values()) < 1 or sizes["vision_width"] % 64 or sizes["text_width"] % 64:
            raise ValueError(f"sizes must be at least 1 and widths multiples of 64 (heads = width / 64), got {sizes}")
        with torch.device("meta"):                              # no memory yet: the given tensors become the parameters
            clip = CLIP(**sizes)
        clip.load_state_dict(state, assign=True)
    except (LookupError, AttributeError, TypeError, RuntimeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise ValueError(f"not the state dict of a ViT CLIP under OpenAI's names: {reason[:200]}") from error
    return clip.eval()


def load(name_or_path, device="cpu", dtype=torch.float32):
    """CLIP by name (MODELS, or "tiny") or from a file: OpenAI's TorchScript archive, or a plain state dict file.

    OpenAI's models only: others under the same names (OpenCLIP's with plain GELU, say) would load and compute wrongly.
    A state dict may be wrapped as {"state_dict": ...} and its names may start with "module.". Weights become `dtype`;
    the temperature stays float32. Raises FileNotFoundError, or ValueError for a file that can't be read as a CLIP.
    """
    name = str(name_or_path)
    if name in MODELS:
        path = download(*MODELS[name])
    elif regex.fullmatch(r"RN\d+(x\d+)?", name):
        raise ValueError(f"{name} is a ResNet; this companion covers the ViT models: {', '.join(MODELS)}")
    else:
        path = ASSETS / "tiny_clip.pt" if name == "tiny" else Path(name)
        if not path.is_file():
            raise FileNotFoundError(f"no CLIP model or file {name!r}: give one of {', '.join(MODELS)}, tiny, "
                                    "or the path of a weights file")
    try:
        state = _read_state_dict(path)
        clip = build(state)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    scale = clip.logit_scale.detach().float()
    clip = clip.to(device=device, dtype=dtype)
    clip.logit_scale = nn.Parameter(scale.to(device))
    return clip


def _read_state_dict(path):
    try:
        # both kinds of file are zip archives in current torch, but only TorchScript's has this member
        names = zipfile.ZipFile(path).namelist() if zipfile.is_zipfile(path) else []
        if any(name.endswith("/constants.pkl") for name in names):
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*torch.jit.load.*")
                return torch.jit.load(str(path), map_location="cpu").state_dict()
        state = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError:
        raise
    except Exception as error:                                  # a damaged file raises any of half a dozen types
        raise ValueError("not a weights file, or a truncated one; expected a TorchScript archive or a state dict saved "
                         "by torch.save; download it again") from error
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not (isinstance(state, dict) and all(isinstance(n, str) and torch.is_tensor(t) for n, t in state.items())):
        raise ValueError("holds no state dict (names and tensors); expected CLIP weights under OpenAI's names")
    return state


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def download(checksum, file):
    """OpenAI's weights file in CACHE, fetched if it is not there -> its path. An interrupted download goes on next time."""
    path, url = CACHE / file, f"{URL}/{checksum}/{file}"
    part = path.with_suffix(".part")
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        have = part.stat().st_size if part.exists() else 0
        try:
            _fetch(url, part, have)
        except (OSError, http.client.HTTPException) as error:   # URLError is an OSError, and so is a broken connection
            reason = str(getattr(error, "reason", error)).strip()
            raise FileNotFoundError(f"could not download {file} ({reason}): run again with a network, or put the file "
                                    f"from {url} into {CACHE}") from error
        if sha256(part) != checksum:
            part.unlink()
            raise ValueError(f"{url} came with a wrong SHA-256 and was deleted; run again to download it anew")
        os.replace(part, path)
    elif sha256(path) != checksum:
        raise ValueError(f"{path} has a wrong SHA-256, expected {checksum}: delete it and run again to download it anew")
    return path


def _fetch(url, part, have):
    """Append url's bytes from `have` on to the file `part`; start over where the server can't resume."""
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(request, timeout=30)
    except urllib.error.HTTPError as error:
        error.close()
        if not have or error.code != 416:
            raise
        return                                                  # nothing left to fetch: the sum decides
    with answer, open(part, "ab" if answer.status == 206 else "wb") as out:
        have = have if answer.status == 206 else 0
        total = have + int(answer.headers.get("Content-Length", 0))
        with tqdm(total=total or None, initial=have, unit="B", unit_scale=True, desc=part.stem) as bar:
            while block := answer.read(1 << 20):
                out.write(block)
                bar.update(len(block))
        if total and out.tell() < total:
            raise OSError(f"the connection ended after {out.tell()} of {total} bytes; the rest is fetched next time")


# --------------------------------------------------------------------------------------------------------- the tokenizer

class Tokenizer:
    """CLIP's byte-pair encoding (From CLIP: lower case, 49,408 ids): encode(text) -> ids without start and end token."""

    PATTERN = regex.compile(r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+",
                            regex.IGNORECASE)

    def __init__(self):
        # every byte gets a printable stand-in, so that merges can be kept as text: printable Latin-1 stands for itself,
        # the other 68 bytes get the code points from 256 on; the vocabulary has them in this order
        printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
        others = [b for b in range(256) if b not in printable]
        self.byte_symbol = {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}
        merges = gzip.decompress((ASSETS / "bpe_merges.txt.gz").read_bytes()).decode("utf-8").split("\n")[:-1]
        merges = [tuple(line.split()) for line in merges]
        symbols = list(self.byte_symbol.values())
        vocabulary = symbols + [s + "</w>" for s in symbols] + ["".join(pair) for pair in merges]
        vocabulary += ["<|startoftext|>", "<|endoftext|>"]
        self.ids = {symbol: i for i, symbol in enumerate(vocabulary)}
        self.rank = {pair: i for i, pair in enumerate(merges)}
        self.start, self.end = len(vocabulary) - 2, len(vocabulary) - 1

    def encode(self, text):
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
        text = " ".join(text.split()).lower()
        return [i for word in self.PATTERN.findall(text) for i in self._encode_word(word)]

    def _encode_word(self, word):
        if word in ("<|startoftext|>", "<|endoftext|>"):
            return [self.ids[word]]
        parts = [self.byte_symbol[b] for b in word.encode("utf-8")]
        parts[-1] += "</w>"
        while len(parts) > 1:                                   # join the most frequent adjacent pair until none is known
            best = min(zip(parts, parts[1:]), key=lambda pair: self.rank.get(pair, len(self.rank)))
            if best not in self.rank:
                break
            joined, i = [], 0
            while i < len(parts):
                both = tuple(parts[i:i + 2]) == best
                joined.append("".join(best) if both else parts[i])
                i += 2 if both else 1
            parts = joined
        return [self.ids[part] for part in parts]


_tokenizer = None


def prompt_ids(text):
    """text -> list of ids with start and end token; ValueError that shows the text where it exceeds 77 tokens."""
    global _tokenizer
    _tokenizer = _tokenizer or Tokenizer()                      # reading 48,894 merges takes a moment: once a process
    ids = [_tokenizer.start, *_tokenizer.encode(text), _tokenizer.end]
    if len(ids) > CONTEXT_LENGTH:
        raise ValueError(f"{len(ids)} tokens where CLIP takes {CONTEXT_LENGTH}: shorten {text!r}")
    return ids


def tokenize(texts):
    """Text or list of N texts -> LongTensor (N, 77): start token, ids, end token, zeros."""
    texts = [texts] if isinstance(texts, str) else texts
    rows = torch.zeros(len(texts), CONTEXT_LENGTH, dtype=torch.long)
    for row, text in zip(rows, texts):
        ids = prompt_ids(text)
        row[:len(ids)] = torch.tensor(ids)
    return rows
