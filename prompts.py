"""Zero-shot CLIP and three prompt learners (Sec. 3.1): CoOp, CoCoOp, MaPLe.

A learner makes prompts t_k of class names, text features g_k = G_l(t_k) of prompts, z = G_v(f) of
images, and the logits of Eq. (1) of both:

    learner = prompts.build("maple", clip, ["Forest", "River"], n_ctx=2, ctx_init="a photo of a")
    logits, z, g = learner(images)              # (B, K), (B, d), (K, d); CoCoOp's g is (B, K, d)
    learner.set_classes(["Highway", "Sea"])     # other classes under the same learned tokens

    B  images       b  learned tokens, u_1..u_b and v_1..v_b        w    width of the text tower
    K  classes      d  joint feature size                           w_v  width of the image tower

    method     learned                                             the prompt of a class
    zeroshot   nothing                                             a photo of a {class}.
    coop       ctx = u_1..u_b                                      [u_1] .. [u_b] {class}.
    cocoop     ctx, and a small net h: u_j + h(z) for each image   [u_1] .. [u_b] {class}.
    maple      ctx, deep layers' tokens, projections v = F(u)      [u_1] [u_2] of a {class}.

CLIP is frozen; what is "learned" trains in float32, under the originals' names. One prompt comes
first, then the learners, and last all prompts as one tree: the same as one by one, sooner.
"""
import copy
from collections import OrderedDict
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import clip_model
import losses

METHODS = ("zeroshot", "coop", "cocoop", "maple")
TEMPLATE = "a photo of a {}."
# From CoOp, CoCoOp, MaPLe: how many tokens are learned, and the words they start from
DEFAULTS = {
    "zeroshot": {},
    "coop": {"n_ctx": 16, "ctx_init": "", "class_specific": False},
    "cocoop": {"n_ctx": 4, "ctx_init": "a photo of a"},
    "maple": {"n_ctx": 2, "ctx_init": "a photo of a", "prompt_depth": None},
}
DEPTH = 9               # From MaPLe: layers with tokens of their own, in a CLIP that has as many
TRANSFER_DEPTH = 3      # From MaPLe: where ImageNet's 1,000 classes are the source


# One prompt, and its text feature --------------------------------------------------------------

def text_prompt(clip, ids, u=None):
    """t_k = [start, u_1 .. u_b, words, name, end]: the vectors of one class's prompt, (T, w).

    ids  what Learner.token_ids gives: a token's id, or -j where u_j stands
    u    (b, w), the learned vectors
    """
    words = clip.token_embedding.weight                                     # (49408, w)
    return torch.stack([words[i] if i >= 0 else u[-i - 1].to(words.dtype) for i in ids])


def encode_prompt(clip, ids, u=None, deep_prompts=()):
    """G_l(t_k) for one class: (d,), any length. Training takes encode_prompts: the same, sooner.

    deep_prompts  tensors (b, w) that take the places of u before layers 2, 3, ...
    """
    T, device = len(ids), clip.logit_scale.device
    x = text_prompt(clip, ids, u) + clip.positional_embedding[:T]               # (T, w)
    mask = torch.ones(T, T, dtype=torch.bool, device=device).tril()     # no token sees a later one
    slots = torch.tensor([n for n, i in enumerate(ids) if i < 0], device=device)    # where u stands
    x = clip.transformer(x[None], mask, deep_prompts=deep_prompts, slots=slots)     # (1, T, w)
    return clip.ln_final(x[0, -1]) @ clip.text_projection               # read at the end token


# The learners ----------------------------------------------------------------------------------

class Learner(nn.Module):
    """What all learners share: class names -> prompts, Eq. (1), and a frozen CLIP."""

    per_image = False               # True where every image has text features of its own (CoCoOp)
    frozen_images = True            # False where learned tokens enter the image tower (MaPLe)
    class_specific = False          # True where each class has a context of its own (CoOp's CSC)
    class_place = "end"             # From CoOp: its name may stand in the middle, or in front

    def __init__(self, clip, ctx_init="", n_learned=0):
        """ctx_init: words, whose first tokens the learned vectors replace; "": they start none."""
        super().__init__()
        self.clip = clip.requires_grad_(False)
        self.template = f"{ctx_init} {{}}.".strip()             # {}: the class name
        self.n_learned = n_learned
        self.n_replaced = n_learned * bool(ctx_init)

    def prompt(self, classname):
        """The words of a prompt, in which an underscore of a name becomes a space."""
        return self.template.replace("{}", classname.replace("_", " "))

    def show_prompt(self, classname):
        """The prompt as text, learned tokens marked, of many the ends: "[u_1] [u_2] of a cat."."""
        learned = [f"[u_{j + 1}]" for j in range(self.n_learned)]
        if len(learned) > 4:
            learned = [learned[0], "..", learned[-1]]
        words = " ".join(self.prompt(classname).split(" ")[self.n_replaced:])
        name = words.removesuffix(".")
        return " ".join(self.arranged(learned, [name], 1)) + words[len(name):]

    def arranged(self, learned, words, n):
        """The learned around or behind the n words of the class name, or before all of them."""
        b = len(learned)
        before = {"end": b, "middle": b // 2, "front": 0}[self.class_place]
        return [*learned[:before], *words[:n], *learned[before:], *words[n:]]

    def token_ids(self, k, classname):
        """Class k's prompt as a list of ids, -j for u_j: [start, -1, -2, of, a, cat, ., end]."""
        b = self.n_learned
        first = k * b * self.class_specific                     # of class k's own vectors
        learned = [-(first + j) for j in range(1, 1 + b)]
        try:
            start, *words, end = clip_model.prompt_ids(self.prompt(classname))
            n = len(clip_model.prompt_ids(classname.replace("_", " "))) - 2
            ids = [start, *self.arranged(learned, words[self.n_replaced:], n), end]
            if len(ids) > clip_model.CONTEXT_LENGTH:
                raise ValueError(f"{len(ids)} tokens where CLIP takes {clip_model.CONTEXT_LENGTH}, "
                                 f"{b} of them learned: shorten the name")
        except ValueError as error:
            raise ValueError(f"class {classname[:80]!r}: {error}") from None
        return ids

    def set_classes(self, classnames):
        """Other classes, nothing learned changes; ValueError where a prompt exceeds 77 tokens."""
        if not classnames:
            raise ValueError("a learner needs at least one class name, got none")
        ids = [self.token_ids(k, name) for k, name in enumerate(classnames)]
        self.trees = plant_trees(ids, self.clip.logit_scale.device)
        self.classnames = list(classnames)

    def encode(self, u=None, deep_prompts=()):
        """g_k = G_l(t_k), unit length, (K, d), from learned tokens u; (B, K, d) for u (B, b, w)."""
        return F.normalize(encode_prompts(self.clip, self.trees, u, deep_prompts).float(), dim=-1)

    def image_features(self, images):
        """z = G_v(f), unit length: images (B, 3, res, res) -> (B, d) float32."""
        return F.normalize(self.clip.encode_image(images, self.visual_prompts()).float(), dim=-1)

    def visual_prompts(self):
        """v of each layer of the image tower that has any: only MaPLe's."""
        return ()

    def text_features(self, z=None):
        """g, unit length, (K, d); of CoCoOp (B, K, d), for images with features z (B, d)."""
        return self.encode()

    def compare(self, z, text_features=None):
        """z (B, d) -> logits (B, K), z, g; text_features: g, where the caller holds it already."""
        g = self.text_features(z) if text_features is None else text_features
        return losses.similarities(z, g) / self.clip.temperature, z, g  # Eq. (1), <z, g_k> / lambda

    def forward(self, images, text_features=None):
        """images (B, 3, res, res) -> logits (B, K), z (B, d), g (K, d) or CoCoOp's (B, K, d)."""
        return self.compare(self.image_features(images), text_features)


class ZeroShot(Learner):
    """CLIP as it is, on a hand-written template."""

    def __init__(self, clip, classnames, template=TEMPLATE):
        super().__init__(clip)
        self.template = template
        self.set_classes(classnames)


class CoOp(Learner):
    """b learned vectors in front of the class name, the same for all classes (CoOp).

    From CoOp: a ctx_init also sets their number, one for each of its words.
    class_specific  b vectors for each class (CoOp's CSC); other classes then have none
    """

    def __init__(self, clip, classnames, n_ctx, ctx_init="", class_specific=False,
                 class_place="end"):
        super().__init__(clip, ctx_init, len(ctx_init.split()) or n_ctx)
        self.class_specific, self.class_place = class_specific, class_place
        copies = [len(classnames)] * class_specific
        self.ctx = initial_context(clip, self.n_learned, ctx_init, copies)  # (b, w) or (K, b, w)
        self.set_classes(classnames)

    def set_classes(self, classnames):
        trained = getattr(self, "classnames", list(classnames))
        if self.class_specific and list(classnames) != trained:
            raise ValueError("class-specific contexts belong to the classes they were learned for; "
                             "other classes have none")
        super().set_classes(classnames)

    def text_features(self, z=None):
        return self.encode(self.ctx.flatten(0, -2))


class CoCoOp(Learner):
    """Vectors that depend on the image: u_j + h(z), h a net d -> d/16 -> w with a ReLU between."""

    per_image = True

    def __init__(self, clip, classnames, n_ctx, ctx_init=""):
        super().__init__(clip, ctx_init, len(ctx_init.split()) or n_ctx)
        self.ctx = initial_context(clip, self.n_learned, ctx_init)          # (b, w)
        w, d = clip.text_projection.shape
        self.meta_net = nn.Sequential(OrderedDict(
            linear1=nn.Linear(d, d // 16), relu=nn.ReLU(), linear2=nn.Linear(d // 16, w)))
        self.meta_net.to(clip.logit_scale.device)
        self.set_classes(classnames)

    def text_features(self, z=None):
        if z is None:
            raise ValueError("CoCoOp's text features belong to images: call text_features(z) with "
                             "their features")
        return self.encode(self.ctx + self.meta_net(z)[:, None])            # (B, b, w)


class MaPLe(Learner):
    """Learned tokens in both towers; the visual ones are projections of the text's, v = F(u).

    prompt_depth  J: layers that get tokens of their own, the first included; 1: the input only.
                  None: 9, or all layers where the CLIP has fewer
    From MaPLe: of "a photo of a" only the first b words are learned, "of a" stays as ordinary
    tokens; beyond four tokens the words are left out and all vectors start at random.
    """

    frozen_images = False

    def __init__(self, clip, classnames, n_ctx, ctx_init="", prompt_depth=None):
        if n_ctx > 4:
            ctx_init = ""
        if ctx_init and n_ctx > len(clip_model.prompt_ids(ctx_init)) - 2:
            raise ValueError(f"n_ctx = {n_ctx} learned tokens start at the words of the ctx_init, "
                             f"which has fewer: {ctx_init!r}")
        super().__init__(clip, ctx_init, n_ctx)
        self.prompt_depth = fit_depth(clip, prompt_depth)
        self.ctx = initial_context(clip, n_ctx, ctx_init)                   # (b, w), u of layer 1
        w, w_v = clip.text_projection.shape[0], clip.visual.proj.shape[0]
        deep = self.prompt_depth - 1
        self.proj = nn.Linear(w, w_v)
        self.compound_prompts_text = nn.ParameterList(
            0.02 * torch.randn(n_ctx, w) for _ in range(deep))              # u of layers 2..J
        projection = nn.Linear(w, w_v)              # From MaPLe: all deep projections start alike
        self.compound_prompt_projections = nn.ModuleList(
            copy.deepcopy(projection) for _ in range(deep))
        for part in (self.proj, self.compound_prompts_text, self.compound_prompt_projections):
            part.to(clip.logit_scale.device)
        self.set_classes(classnames)

    def visual_prompts(self):
        """v = F(u) of each prompted layer: a list of J tensors (b, w_v)."""
        pairs = zip(self.compound_prompt_projections, self.compound_prompts_text, strict=True)
        return [self.proj(self.ctx), *(F_j(u_j) for F_j, u_j in pairs)]

    def text_features(self, z=None):
        return self.encode(self.ctx, list(self.compound_prompts_text))


# How a learner starts --------------------------------------------------------------------------

def initial_context(clip, b, ctx_init, copies=()):
    """ctx (*copies, b, w) as a Parameter: at the words' embeddings, else N(0, 0.02^2)."""
    if ctx_init:
        ids = torch.tensor(clip_model.prompt_ids(ctx_init)[1:1 + b])
        ctx = clip.token_embedding(ids.to(clip.logit_scale.device)).detach().float()
        ctx = ctx.repeat(*copies, 1, 1)
    else:
        ctx = 0.02 * torch.randn(*copies, b, clip.token_embedding.embedding_dim)
    return nn.Parameter(ctx.to(clip.logit_scale.device))


def fit_depth(clip, prompt_depth):
    """MaPLe's J for this CLIP: an explicit one must fit, an absent one (None) is fitted."""
    layers = min(len(clip.transformer.resblocks), len(clip.visual.transformer.resblocks))
    if prompt_depth is None:
        return min(DEPTH, layers)
    if not 1 <= prompt_depth <= layers:
        raise ValueError(f"prompt depth must be from 1 to {layers}, the layers of this CLIP's "
                         f"shallower tower; got {prompt_depth}")
    return prompt_depth


def resolve(method, **given):
    """Settings given for a method, None where they were not -> all that build() takes for it.

    CoOp and CoCoOp learn one vector for each word of ctx_init, so the one of n_ctx and ctx_init
    that is given decides about the other; ctx_init "" asks for a random start. A depth that was not
    given stays None, for fit_depth. Raises ValueError for what does not fit the method.
    """
    default = DEFAULTS[method]
    given = {name: v for name, v in given.items() if v is not None and v is not False}
    for name in given.keys() - default.keys():
        raise ValueError(f"--{name.replace('_', '-')} is no setting of {method}")
    settings = default | given
    if method == "maple" and given.get("ctx_init") and settings["n_ctx"] > 4:
        raise ValueError("maple starts more than four tokens at random: leave out --ctx-init")
    if method in ("coop", "cocoop"):
        if "ctx_init" not in given and settings["n_ctx"] != default["n_ctx"]:
            settings["ctx_init"] = ""
        words = settings["ctx_init"].split()
        settings["n_ctx"] = given.get("n_ctx", len(words) or default["n_ctx"])
        if words and settings["n_ctx"] != len(words):
            raise ValueError(f"{method} learns one token for each word of --ctx-init "
                             f"{' '.join(words)[:80]!r}, which is not --n-ctx "
                             f"{settings['n_ctx']}; leave one of them out")
    return settings


def build(method, clip, classnames, *, n_ctx=None, ctx_init=None, prompt_depth=None,
          class_specific=False, class_place="end"):
    """The learner `method` on a frozen CLIP for K class names -> nn.Module (see the file's top).

    n_ctx           b; None: the method's own number (DEFAULTS)
    ctx_init        words that the vectors start from, None: at random; for zeroshot a template
    prompt_depth    MaPLe's J; None: 9, or all layers where there are fewer
    class_specific  CoOp only: a context of its own for each class
    class_place     CoOp only: the name at the "end" of the context, in its "middle", in "front"
    Raises ValueError for an unknown method, settings that do not fit, more than 77 tokens.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}, expected one of {', '.join(METHODS)}")
    if class_specific and method != "coop":
        raise ValueError(f"class_specific is a setting of coop, not of {method}")
    ctx_init = " ".join((ctx_init or "").split())       # a double space would count as a word
    if method == "zeroshot":
        template = ctx_init or TEMPLATE
        if "{}" not in template:
            template += " {}."
        return ZeroShot(clip, classnames, template)
    if "{}" in ctx_init:
        raise ValueError(f"ctx_init of {method} is the words before a class name, without {{}}")
    if n_ctx is None:
        n_ctx = DEFAULTS[method]["n_ctx"]
    if not 1 <= n_ctx < clip_model.CONTEXT_LENGTH:
        raise ValueError(f"n_ctx must be at least 1 and below {clip_model.CONTEXT_LENGTH}, CLIP's "
                         f"number of tokens; got {n_ctx}")
    if method == "coop":
        return CoOp(clip, classnames, n_ctx, ctx_init, class_specific, class_place)
    if method == "cocoop":
        return CoCoOp(clip, classnames, n_ctx, ctx_init)
    return MaPLe(clip, classnames, n_ctx, ctx_init, prompt_depth)


def trainable(learner):
    """{name: parameter} of what trains: a run's checkpoint, nothing that depends on classes."""
    return {name: p for name, p in learner.named_parameters() if p.requires_grad}


@torch.no_grad()
def load_trainable(learner, state):
    """Copy tensors {name: tensor} into a learner; ValueError where one is missing or misshapen."""
    found = {name: f"one of shape {tuple(tensor.shape)}" for name, tensor in state.items()}
    for name, parameter in trainable(learner).items():
        if found.get(name) != f"one of shape {tuple(parameter.shape)}":
            raise ValueError(f"the checkpoint must hold {name} of shape {tuple(parameter.shape)}, "
                             f"it has {found.get(name, 'none')}; is it from another method, "
                             "backbone or depth?")
        parameter.copy_(state[name])


# The same, sooner: all prompts as one tree -----------------------------------------------------

class PromptTree(nn.Module):
    """The prompts of some classes as a prefix tree: what several start with alike stands once.

    Under a causal mask a token's state depends on the tokens before it and on nothing else. Prompts
    that start alike have the same states along that start, in every layer, so one copy serves all;
    where they part, even equal words are nodes of their own. Exact: encode_prompt is the same for
    one class, and tests/textbook.py with nothing left out. Two classes of MaPLe:

        start - u_1 - u_2 - of - a -+- cat - . - end            node    token   position   row
                                    |                            0      start      0
                                    +- sea - lake - . - end      1      (u_1)      1        0
                                                                 2      (u_2)      2        1
        given as   [start, -1, -2, of, a, cat, ., end]           3      of         3
                   [start, -1, -2, of, a, sea, lake, ., end]     4      a          4
                                                                 5      cat        5
        slots [1, 2]   nodes where learned vectors stand         6      .          6
        rows  [0, 1]   which row of u stands there               7      end        7
        ends  [7, 11]  end tokens, where g_k is read             8      sea        5
        mask           node 8 sees 0 1 2 3 4 8: its             9      lake       6
                       ancestors and itself                     10      .          7
                                                                11      end        8

    tokens, positions (T,) int64; mask (T, T) bool; ends (K,); slots,
    rows (b,), or b for each class where contexts are class-specific
    """

    def __init__(self, prompts):
        """prompts: K lists of token ids from start to end token, as Learner.token_ids gives."""
        super().__init__()
        nodes = {}                                              # prefix: its place in the sequence
        for ids in prompts:
            for n in range(len(ids)):
                nodes.setdefault(tuple(ids[:n + 1]), len(nodes))
        ids = torch.tensor([prefix[-1] for prefix in nodes])
        mask = torch.eye(len(nodes), dtype=torch.bool)
        for prefix, i in nodes.items():                 # a parent stands before its children
            if len(prefix) > 1:
                mask[i] |= mask[nodes[prefix[:-1]]]
        slots = (ids < 0).nonzero()[:, 0]
        buffers = {"tokens": ids.clamp(min=0), "mask": mask,
                   "slots": slots, "rows": -1 - ids[slots],
                   "positions": torch.tensor([len(prefix) - 1 for prefix in nodes]),
                   "ends": torch.tensor([nodes[tuple(ids)] for ids in prompts])}
        for name, value in buffers.items():
            self.register_buffer(name, value, persistent=False)


def encode_tree(clip, tree, u, deep_prompts):
    """encode_prompt for the K classes of a tree; u (B, b, w) stands in its slots -> (B, K, d)."""
    x = clip.token_embedding(tree.tokens)                                   # (T, w)
    u = u.to(x.dtype).index_select(1, tree.rows)
    x = x.expand(len(u), -1, -1).index_copy(1, tree.slots, u)               # (B, T, w)
    x = x + clip.positional_embedding[tree.positions]
    x = clip.transformer(x, tree.mask, read=tree.ends, deep_prompts=deep_prompts, slots=tree.slots)
    return clip.ln_final(x) @ clip.text_projection                          # (B, K, d)


def encode_prompts(clip, trees, u=None, deep_prompts=()):
    """G_l for all classes: -> (K, d), or (B, K, d) where u has one set of vectors an image.

    trees         list of PromptTree, which together hold the K classes
    u             (b, w) or (B, b, w): the learned vectors that stand in the trees' slots
    deep_prompts  tensors (b, w) that replace them in the deeper layers
    """
    if u is None:
        u = clip.token_embedding.weight[:0]                     # zero-shot CLIP: b = 0
    sets = u[None] if u.ndim == 2 else u                        # (B, b, w); B = 1: for all images
    encode, nodes = encode_tree, sum(len(tree.tokens) for tree in trees)
    if torch.is_grad_enabled() and len(sets) * nodes > CROWDED:
        encode = partial(checkpoint, encode_tree, use_reentrant=False, preserve_rng_state=False)
    features = torch.cat([encode(clip, tree, sets, deep_prompts) for tree in trees], dim=1)
    return features[0] if u.ndim == 2 else features


TREE_NODES = {"cpu": 256}   # a CPU pays the masked-out attention of a large tree in full,
TREE_NODES_GPU = 2048       # a GPU would rather have fewer, larger steps
CROWDED = 8192              # nodes of a training step beyond which activations are not kept but
                            # computed again (ViT-B/16 in float32: half a megabyte a node)


def plant_trees(prompts, device):
    """K prompts (see PromptTree) -> ModuleList of trees of limited size, classes in order.

    One tree would do. But the masked-out part of the attention grows with its square, and a crowded
    step recomputes one tree at a time. A new tree costs a copy of the common start.
    """
    most = TREE_NODES.get(device.type, TREE_NODES_GPU)
    groups, nodes = [[]], set()
    for ids in prompts:
        new = {tuple(ids[:n + 1]) for n in range(len(ids))}
        if groups[-1] and len(nodes | new) > most:
            groups.append([])
            nodes = set()
        groups[-1].append(ids)
        nodes |= new
    return nn.ModuleList(PromptTree(group) for group in groups).to(device)
