"""Zero-shot CLIP and three prompt learners: CoOp, CoCoOp, MaPLe (Sec. 3.1). A learner makes z, g and the logits of Eq. (1).

    learner = prompts.build("maple", clip, ["Forest", "River"], n_ctx=2, ctx_init="a photo of a", prompt_depth=9)
    logits, z, g = learner(images)          # (B, K), (B, d), (K, d); CoCoOp's g is (B, K, d)
    learner.set_classes(["Highway", "Sea"])         # other classes under the same learned tokens: base-to-novel

    B  images       b  learned tokens, u_1..u_b and v_1..v_b        w  width of the text tower
    K  classes      d  joint feature size                           w_v  width of the image tower

    method     learned                                                    sees
    zeroshot   nothing                                                    "a photo of a {class}."
    coop       ctx = u_1..u_b                                             "[u_1] .. [u_b] {class}."
    cocoop     ctx and a small net h: u_j + h(z), another for each image  "[u_1] .. [u_b] {class}."
    maple      ctx, deeper layers' tokens, their projections v = F(u)     "[u_1] [u_2] of a {class}." and the image

CLIP is frozen; only the tensors named under "learned" train, in float32, under the originals' names. What a learner
returns does not depend on train or eval mode.
"""
import copy

import torch
import torch.nn.functional as F
from torch import nn

import clip_model

METHODS = ("zeroshot", "coop", "cocoop", "maple")
TREE_NODES = {"cpu": 256}           # a CPU does the masked-out attention of a large tree at full price,
TREE_NODES_GPU = 2048               # a GPU would rather have fewer, larger steps


class ZeroShot(nn.Module):
    """CLIP as it is, and what all learners share: classes -> prompts -> g, images -> z, and Eq. (1)."""

    per_image = False               # True where every image has text features of its own (CoCoOp)
    frozen_images = True            # False where learned tokens enter the image tower (MaPLe)

    def __init__(self, clip, classnames, template="a photo of a {}."):
        super().__init__()
        self.clip = clip.requires_grad_(False)
        self.template, self.n_learned = template, 0
        self.set_classes(classnames)

    def prompt(self, classname):
        """The text around a class name; at prompt time, and only there, an underscore becomes a space."""
        return self.template.format(classname.replace("_", " "))

    def prompt_ids(self, k, classname):
        """Token ids of class k; a learned token is -1 - r, where r is its row in the learned tensor."""
        try:
            ids = clip_model.prompt_ids(self.prompt(classname))
        except ValueError as error:
            raise ValueError(f"class {classname!r}: {error}") from None
        ids[1:1 + self.n_learned] = [-1 - r for r in range(self.n_learned)]             # right behind the start token
        return ids

    def show_prompt(self, classname):
        """The prompt as text, learned tokens marked: "[u_1] [u_2] of a Forest."."""
        words = self.prompt(classname).split(" ")
        return " ".join([f"[u_{j + 1}]" for j in range(self.n_learned)] + words[self.n_learned:])

    def set_classes(self, classnames):
        """Point the learner at other classes. Nothing learned changes. ValueError where a prompt exceeds 77 tokens."""
        if not classnames:
            raise ValueError("a learner needs at least one class name, got none")
        device = self.clip.logit_scale.device
        nodes = TREE_NODES.get(device.type, TREE_NODES_GPU)
        prompts = [self.prompt_ids(k, name) for k, name in enumerate(classnames)]
        self.trees = clip_model.plant_trees(prompts, nodes).to(device)
        self.classnames = list(classnames)

    def image_features(self, images):
        """z = G_v(x), unit length: images (B, 3, res, res) -> (B, d) float32."""
        return F.normalize(self.clip.encode_image(images).float(), dim=-1)

    def text_features(self, z=None):
        """g_k = G_l(t_k), unit length: -> (K, d) float32. CoCoOp needs the image features z and gives (B, K, d)."""
        return F.normalize(self.clip.encode_prompts(self.trees).float(), dim=-1)

    def compare(self, z, text_features=None):
        """Eq. (1) from image features z (B, d) -> logits (B, K), z, g.

        text_features  g, where the caller holds it already: evaluation computes it once for a list of classes
        """
        g = self.text_features(z) if text_features is None else text_features
        return (z[:, None] @ g.mT)[:, 0] / self.clip.temperature, z, g                  # <z, g_k> / lambda

    def forward(self, images, text_features=None):
        """images (B, 3, res, res) -> logits (B, K), z (B, d), g (K, d) or CoCoOp's (B, K, d)."""
        return self.compare(self.image_features(images), text_features)


class CoOp(ZeroShot):
    """b learned vectors in front of the class name, the same for all classes (CoOp), or b for each (its CSC).

    With a ctx_init the vectors start at its words' embeddings, else at N(0, 0.02^2).
    From CoOp: a ctx_init also sets their number, one for each of its words, whatever n_ctx says.
    """

    def __init__(self, clip, classnames, n_ctx=16, ctx_init=None, class_specific=False):
        nn.Module.__init__(self)
        self.clip = clip.requires_grad_(False)
        ctx_init = fold_spaces(ctx_init)
        self.n_learned = self.count_learned(n_ctx, ctx_init)
        self.start = ctx_init or " ".join(["X"] * self.n_learned)       # "X" holds the place of a learned vector
        self.class_specific = class_specific
        shape = (self.n_learned, clip.token_embedding.embedding_dim)
        if ctx_init:
            ids = torch.tensor(clip_model.prompt_ids(ctx_init)[1:1 + self.n_learned], device=clip.logit_scale.device)
            ctx = clip.token_embedding(ids).detach().float().clone()
            ctx = ctx.repeat(len(classnames), 1, 1) if class_specific else ctx
        else:
            ctx = 0.02 * torch.randn(len(classnames), *shape) if class_specific else 0.02 * torch.randn(shape)
        self.ctx = nn.Parameter(ctx.to(clip.logit_scale.device))        # (b, w), class-specific (K, b, w)
        self.set_classes(classnames)

    def count_learned(self, n_ctx, ctx_init):
        if ctx_init:
            return len(ctx_init.split(" "))
        if n_ctx < 1:
            raise ValueError(f"n_ctx must be at least 1, got {n_ctx}")
        return n_ctx

    def prompt(self, classname):
        return f"{self.start} {classname.replace('_', ' ')}."

    def prompt_ids(self, k, classname):
        ids = super().prompt_ids(k, classname)
        if self.class_specific:                                         # rows of ctx.flatten(0, 1)
            ids[1:1 + self.n_learned] = [i - k * self.n_learned for i in ids[1:1 + self.n_learned]]
        return ids

    def set_classes(self, classnames):
        if self.class_specific and list(classnames) != getattr(self, "classnames", list(classnames)):
            raise ValueError("class-specific contexts belong to the classes they were learned for; other classes have none")
        super().set_classes(classnames)

    def text_features(self, z=None):
        ctx = self.ctx.flatten(0, 1) if self.class_specific else self.ctx
        return F.normalize(self.clip.encode_prompts(self.trees, ctx).float(), dim=-1)


class CoCoOp(CoOp):
    """CoOp whose vectors depend on the image: u_j + h(z), h a net d -> d/16 -> w with a ReLU between."""

    per_image = True

    def __init__(self, clip, classnames, n_ctx=4, ctx_init="a photo of a"):
        super().__init__(clip, classnames, n_ctx, ctx_init)
        d, w = clip.text_projection.shape[1], clip.text_projection.shape[0]
        self.meta_net = nn.Sequential()
        self.meta_net.add_module("linear1", nn.Linear(d, d // 16))
        self.meta_net.add_module("relu", nn.ReLU())
        self.meta_net.add_module("linear2", nn.Linear(d // 16, w))
        self.meta_net.to(clip.logit_scale.device)

    def text_features(self, z=None):
        if z is None:
            raise ValueError("CoCoOp's text features belong to images: call text_features(z) with their features")
        ctx = self.ctx + self.meta_net(z)[:, None]                      # (B, b, w)
        return F.normalize(self.clip.encode_prompts(self.trees, ctx).float(), dim=-1)


class MaPLe(CoOp):
    """Learned tokens in both towers: the visual ones are projections of the text's, v = F(u); deep ones in J layers.

    prompt_depth  J: layers that get tokens of their own, the first included; 1 means the input only
    From MaPLe: of "a photo of a" only the first b words are learned, "of a" stays as ordinary tokens; beyond four tokens
    the ctx_init is left out and all start at random.
    """

    frozen_images = False

    def __init__(self, clip, classnames, n_ctx=2, ctx_init="a photo of a", prompt_depth=9):
        super().__init__(clip, classnames, n_ctx, ctx_init if n_ctx <= 4 else None)
        layers = max_depth(clip)
        if not 1 <= prompt_depth <= layers:
            raise ValueError(f"prompt depth must be from 1 to {layers}, the layers of this CLIP's shallower tower; "
                             f"got {prompt_depth}")
        w, w_v = clip.text_projection.shape[0], clip.visual.proj.shape[0]
        self.proj = nn.Linear(w, w_v)
        self.compound_prompts_text = nn.ParameterList(0.02 * torch.randn(n_ctx, w) for _ in range(prompt_depth - 1))
        projection = nn.Linear(w, w_v)                                  # From MaPLe: all deep projections start alike
        self.compound_prompt_projections = nn.ModuleList(copy.deepcopy(projection) for _ in range(prompt_depth - 1))
        for part in (self.proj, self.compound_prompts_text, self.compound_prompt_projections):
            part.to(clip.logit_scale.device)

    def count_learned(self, n_ctx, ctx_init):
        if ctx_init and n_ctx > len(clip_model.prompt_ids(ctx_init)) - 2:
            raise ValueError(f"n_ctx = {n_ctx} learned tokens start at the words of the ctx_init, which has fewer: "
                             f"{ctx_init!r}")
        return super().count_learned(n_ctx, None)

    def image_features(self, images):
        deep = [F_j(u_j) for F_j, u_j in zip(self.compound_prompt_projections, self.compound_prompts_text)]
        visual = [self.proj(self.ctx), *deep]                           # v of each layer, (b, w_v)
        return F.normalize(self.clip.encode_image(images, visual).float(), dim=-1)

    def text_features(self, z=None):
        g = self.clip.encode_prompts(self.trees, self.ctx, list(self.compound_prompts_text))
        return F.normalize(g.float(), dim=-1)


def fold_spaces(ctx_init):
    """The ctx_init, or None, without double spaces: each would count as a word."""
    return ctx_init and " ".join(ctx_init.split())


def max_depth(clip):
    """The deepest prompts a CLIP can take: the layers of its shallower tower."""
    return min(len(clip.transformer.resblocks), len(clip.visual.transformer.resblocks))


def build(method, clip, classnames, *, n_ctx=None, ctx_init=None, prompt_depth=None, class_specific=False):
    """The learner `method` on a frozen CLIP for K class names -> nn.Module (see the top of this file).

    n_ctx           b; None: the method's own number (CoOp 16, CoCoOp 4, MaPLe 2)
    ctx_init        words the learned vectors start from, None: at random. For zeroshot a template with "{}"
    prompt_depth    MaPLe's J; None: 9, or all layers where there are fewer
    class_specific  CoOp only: a context of its own for each class
    Raises ValueError for an unknown method, settings that do not fit, and a prompt of more than 77 tokens.
    """
    if class_specific and method != "coop":
        raise ValueError(f"class_specific is a setting of coop, not of {method}")
    if method == "zeroshot":
        template = ctx_init or "a photo of a {}."
        return ZeroShot(clip, classnames, template if "{}" in template else template + " {}.")
    if method == "coop":
        return CoOp(clip, classnames, 16 if n_ctx is None else n_ctx, ctx_init, class_specific)
    if method == "cocoop":
        return CoCoOp(clip, classnames, 4 if n_ctx is None else n_ctx, ctx_init)
    if method == "maple":
        depth = min(9, max_depth(clip)) if prompt_depth is None else prompt_depth
        return MaPLe(clip, classnames, 2 if n_ctx is None else n_ctx, ctx_init, depth)
    raise ValueError(f"unknown method {method!r}, expected one of {', '.join(METHODS)}")


def trainable(learner):
    """{name: parameter} of what trains; this and nothing else is a run's checkpoint, no class-dependent buffer in it."""
    return {name: p for name, p in learner.named_parameters() if p.requires_grad}


@torch.no_grad()
def load_trainable(learner, state):
    """Copy learned tensors into a learner, also from the originals' published checkpoints.

    Those prefix "prompt_learner." and hold class-name buffers and CLIP itself besides; these are passed over.
    Raises ValueError where a learned tensor is missing or has another shape.
    """
    state = state.get("state_dict", state)
    state = {name.removeprefix("module.").removeprefix("prompt_learner."): tensor for name, tensor in state.items()}
    for name, parameter in trainable(learner).items():
        if name not in state or state[name].shape != parameter.shape:
            found = f"one of shape {tuple(state[name].shape)}" if name in state else "none"
            raise ValueError(f"the checkpoint must hold {name} of shape {tuple(parameter.shape)}, it has {found}; "
                             "is it from another method, backbone or prompt depth?")
        parameter.copy_(state[name])
