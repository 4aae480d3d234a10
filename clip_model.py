"""CLIP with a Vision Transformer, written for reading, and the way weights get in.

The encoders G_v and G_l of Sec. 3.1:

    import clip_model
    clip = clip_model.load("ViT-B/16")          # or "tiny", an OpenAI archive, a state dict file
    z = clip.encode_image(images)               # (B, 3, res, res) -> (B, d)
    g = clip.encode_text(clip_model.tokenize(["a photo of a cat."]))        # (N, 77) -> (N, d)

    B  images            N  patches of an image     w  width of a tower (its heads = w / 64)
    T  tokens            b  learned tokens          d  joint feature size, 512 for ViT-B/16

Parameter names are OpenAI's, so that OpenAI's weights load as they are. Features leave the
encoders as the projections give them; the prompt learners turn them into the unit vectors z and g
of the paper.
"""
import gzip
import html
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ftfy
import regex
import torch
import torch.nn.functional as F
from torch import nn

from assets import weight_files
from assets.weight_files import MODELS

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

        mask (T, T): True where the row may look at the column
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

    def forward(self, x, mask=None, read=slice(None)):
        x = x[:, read] + self.attn(self.ln_1(x), mask, read)
        y = quick_gelu(self.mlp.c_fc(self.ln_2(x)))     # y * sigmoid(1.702 y)
        return x + self.mlp.c_proj(y)


class Transformer(nn.Module):
    """Blocks one after the other."""

    def __init__(self, width, layers):
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width) for _ in range(layers))

    def forward(self, x, mask=None, *, read=slice(None), deep_prompts=(), slots=None):
        """x (B, T, w) -> (B, number of read positions, w).

        deep_prompts   tensors (b, w); the i-th replaces what stands at the positions `slots`
                       before layer i + 1. From MaPLe: prompts of depth J enter the first J layers
        read           positions whose output is wanted. Only the last layer can use it: there the
                       other positions feed keys and values but nobody reads their result, so their
                       query and MLP are left out. Exact.
        """
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
            slots = torch.arange(len(v), device=x.device) + x.shape[1]
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

def build(state_dict):
    """State dict under OpenAI's names -> CLIP of the same dtype on the same device.

    Sizes are read from the shapes. Raises ValueError where the tensors are not those of a ViT CLIP,
    and with the tensor's name and value where one is no weight.
    """
    state = {name.removeprefix("module."): tensor for name, tensor in state_dict.items()}
    for name in ("input_resolution", "context_length", "vocab_size"):   # integers in OpenAI's files
        state.pop(name, None)
    if any(name.startswith("visual.layer1.") for name in state):
        raise ValueError("these are the weights of a ResNet CLIP; this companion covers the ViT "
                         "models: " + ", ".join(MODELS))
    try:
        _fill_vocabulary(state)
        with torch.device("meta"):              # no memory yet: the given tensors become parameters
            clip = CLIP(**_sizes(state))
        for name, _ in clip.named_parameters():
            if name in state:
                weight_files.check(name, state[name])
        clip.load_state_dict(state, assign=True)
    except (LookupError, AttributeError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split()).removeprefix("Error(s) in loading state_dict for ")
        if isinstance(error, KeyError):
            reason += " is missing"
        raise ValueError("not the state dict of a ViT CLIP under OpenAI's names: "
                         + weight_files.shorten(reason)) from error
    return clip.eval()


def _fill_vocabulary(state):
    """assets/tiny_clip.pt has vectors for the ids `words` only: the others become zeros."""
    words = state.pop("token_embedding.words", None)
    if words is not None:
        vectors = state["token_embedding.weight"]
        weight_files.check("token_embedding.weight", vectors)
        table = vectors.new_zeros(VOCABULARY, vectors.shape[1])
        state["token_embedding.weight"] = table.index_copy(0, words, vectors)


def _sizes(state):
    """Arguments of CLIP from the shapes of its tensors."""
    for name, rows in (("positional_embedding", CONTEXT_LENGTH),
                       ("token_embedding.weight", VOCABULARY)):         # the tokenizer's
        if len(state[name]) != rows:
            raise ValueError(f"{name} must have {rows} rows, got {len(state[name])}")

    def layers(tower):
        start = tower + "transformer.resblocks."
        return len({name[len(start):].split(".")[0] for name in state if name.startswith(start)})

    conv, joint = state["visual.conv1.weight"].shape, state["text_projection"].shape
    side = round((len(state["visual.positional_embedding"]) - 1) ** 0.5)
    sizes = {"resolution": side * conv[-1], "patch_size": conv[-1],
             "vision_width": conv[0], "vision_layers": layers("visual."),
             "text_width": joint[0], "text_layers": layers(""),
             "vocab_size": VOCABULARY, "embed_dim": joint[1]}
    if min(sizes.values()) < 1 or sizes["vision_width"] % 64 or sizes["text_width"] % 64:
        raise ValueError("sizes must be at least 1 and widths multiples of 64 (heads = width / 64),"
                         f" got {sizes}")
    return sizes


def load(name_or_path, device="cpu", dtype=torch.float32):
    """CLIP by name (MODELS, or "tiny"), or from a file: OpenAI's archive, or a state dict.

    OpenAI's models only: others under the same names (OpenCLIP's with plain GELU, say) would load
    and compute wrongly. A state dict may be wrapped as {"state_dict": ...} and its names may start
    with "module.". Weights become `dtype`; the temperature stays float32. Raises FileNotFoundError,
    or ValueError for a file that can't be read as a CLIP.
    """
    path = find(name_or_path)
    try:
        clip = build(weight_files.read_state_dict(path))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    scale = clip.logit_scale.detach().float()
    clip = clip.to(device=device, dtype=dtype)
    clip.logit_scale = nn.Parameter(scale.to(device))
    return clip


def find(name_or_path):
    """The weights file of a name or path, downloaded where it has to be; see load."""
    name = str(name_or_path)
    if regex.fullmatch(r"RN\d+(x\d+)?", name):
        raise ValueError(f"{name} is a ResNet; this companion covers the ViT models: "
                         + ", ".join(MODELS))
    if name in MODELS:
        path = weight_files.download(*MODELS[name])
    elif name == "tiny":
        path = ASSETS / "tiny_clip.pt"
    else:
        path = Path(name)
    if not path.is_file():
        raise FileNotFoundError(f"no CLIP model or file {name!r}: give one of {', '.join(MODELS)}, "
                                "tiny, or the path of a weights file")
    return path


def fingerprint(name_or_path):
    """SHA-256 of a weights file: a name or path may come to hold other weights."""
    name = str(name_or_path)
    return MODELS[name][0] if name in MODELS else weight_files.sha256(find(name))


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


_tokenizer = None
LONGEST_TEXT = 32 * CONTEXT_LENGTH              # no token stands for more than 32 bytes


def prompt_ids(text):
    """text -> list of ids with start and end token; ValueError where it exceeds 77 tokens."""
    global _tokenizer
    if len(text) > LONGEST_TEXT:                # before minutes go into its pairs
        raise ValueError(f"{len(text)} characters where CLIP takes {CONTEXT_LENGTH} tokens: "
                         f"shorten {weight_files.shorten(text)!r}")
    _tokenizer = _tokenizer or Tokenizer()      # once a process: reading 48,894 merges takes time
    ids = [_tokenizer.start, *_tokenizer.encode(text), _tokenizer.end]
    if len(ids) > CONTEXT_LENGTH:
        raise ValueError(f"{len(ids)} tokens where CLIP takes {CONTEXT_LENGTH}: shorten "
                         f"{weight_files.shorten(text)!r}")
    return ids


def tokenize(texts):
    """Text or list of N texts -> LongTensor (N, 77): start token, ids, end token, zeros."""
    texts = [texts] if isinstance(texts, str) else texts
    rows = torch.zeros(len(texts), CONTEXT_LENGTH, dtype=torch.long)
    for row, text in zip(rows, texts, strict=True):
        ids = prompt_ids(text)
        row[:len(ids)] = torch.tensor(ids)
    return rows


# -------------------------------------------------------------------------------- for speed alone

def quick_gelu(x):
    """x * sigmoid(1.702 x) as silu(1.702 x) / 1.702: autograd keeps one tensor instead of two."""
    return F.silu(1.702 * x).div_(1.702)


def attend(q, k, v, mask=None):
    """softmax(q k^T / 8) v: (B, heads, T, 64) -> alike; mask as in Attention.

    Written out for bfloat16 on a CPU, where torch's fused form costs half as much again, and three
    times in the backward pass (measured on AVX-512 bfloat16).
    """
    if q.dtype != torch.bfloat16 or q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, mask)
    hidden = q.new_zeros(1)
    if mask is not None:
        hidden = q.new_zeros(mask.shape).masked_fill_(~mask, -torch.inf)
    scores = torch.baddbmm(hidden, q.flatten(0, 1), k.flatten(0, 1).mT, alpha=1 / 8)
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
