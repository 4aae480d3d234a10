"""The method on one page: NPT without a trick, in the paper's letters and order. Read this first.

assets/walk.py walks through one step of it on the tiny CLIP, with all shapes and numbers.

    K  classes   N  images   b  learned tokens   d  joint size   w, w_v  widths of the two towers
    W  the frozen CLIP's weights by OpenAI's names     P  the learned tensors by the originals'
    t  text prompts t_k    f  an image with its prompts    g = G_l(t), z = G_v(f) of unit length

Every class is encoded by itself, with all 77 positions and every layer in full. prompts.py computes
the same in a fraction of the time; the tests hold it to this page. It shares no forward code: the
weights are read by name, the attention is torch's own. Only the tokenizer is clip_model's.
"""
import math
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))
import clip_model

# Sec. 3.1: prompts -----------------------------------------------------------------------------


def text_prompts(W, template, names, u):
    """t_k = [start, u_1..u_b, words, name, end, padding] -> t (K, 77, w) and the ends (K,).

    template: "a photo of a {}."; the b learned vectors u (b, w) take the places of its first words
    """
    texts = [template.replace("{}", name.replace("_", " ")) for name in names]
    tokens = clip_model.tokenize(texts).to(u.device)                        # (K, 77)
    words = W["token_embedding.weight"][tokens]                             # (K, 77, w)
    K, b = len(names), u.shape[-2]
    t = torch.cat([words[:, :1], u.expand(K, b, -1), words[:, 1 + b:]], dim=1)
    return t, tokens.argmax(dim=1)                                          # end: the highest id


def visual_prompt(W, x, v=None):
    """f = [class token, patches of x, v_1..v_b]: x (N, 3, res, res), v (b, w_v) -> (N, -, w_v).

    From MaPLe: v has no position embedding.
    """
    patch = W["visual.conv1.weight"].shape[-1]
    patches = F.conv2d(x, W["visual.conv1.weight"], stride=patch).flatten(2).transpose(1, 2)
    first = W["visual.class_embedding"].expand(len(x), 1, -1)
    f = torch.cat([first, patches], dim=1) + W["visual.positional_embedding"]
    if v is not None:
        f = torch.cat([f, v.expand(len(x), -1, -1)], dim=1)
    return f


# Sec. 3.1: the encoders ------------------------------------------------------------------------

def linear(W, name, x):
    return F.linear(x, W[name + "weight"], W[name + "bias"])


def norm(W, name, x):
    return F.layer_norm(x, x.shape[-1:], W[name + "weight"], W[name + "bias"])


def attention(W, name, x, mask):
    w = x.shape[-1]
    x = x.transpose(0, 1)
    y, _ = F.multi_head_attention_forward(
        x, x, x, w, w // 64, W[name + "in_proj_weight"], W[name + "in_proj_bias"], None, None,
        False, 0.0, W[name + "out_proj.weight"], W[name + "out_proj.bias"],
        need_weights=False, attn_mask=mask)
    return y.transpose(0, 1)


def layer(W, name, x, mask=None):
    """One of CLIP's residual blocks: attention, then a net with QuickGELU."""
    x = x + attention(W, name + "attn.", norm(W, name + "ln_1.", x), mask)
    y = linear(W, name + "mlp.c_fc.", norm(W, name + "ln_2.", x))
    return x + linear(W, name + "mlp.c_proj.", y * torch.sigmoid(1.702 * y))


def layers(W, tower):
    """Names of a tower's layers, in order."""
    start = tower + "transformer.resblocks."
    count = len({name[len(start):].split(".")[0] for name in W if name.startswith(start)})
    return [f"{start}{i}." for i in range(count)]


def G_l(W, t, ends, deep=()):
    """Text encoder: t (K, 77, w) -> g (K, d), unit length; deep: u (b, w) of layers 2, 3, ..."""
    T = t.shape[1]
    x = t + W["positional_embedding"][:T]
    later = torch.full((T, T), -math.inf, dtype=x.dtype, device=x.device).triu(1)
    for i, name in enumerate(layers(W, "")):
        if 0 < i <= len(deep):                                      # From MaPLe: replaced anew
            u = deep[i - 1]
            x = torch.cat([x[:, :1], u.expand(len(x), -1, -1), x[:, 1 + len(u):]], dim=1)
        x = layer(W, name, x, later)                                # no token sees a later one
    x = norm(W, "ln_final.", x)[torch.arange(len(x)), ends]
    return F.normalize(x @ W["text_projection"], dim=-1)


def G_v(W, x, v=()):
    """Image encoder: x (N, 3, res, res) -> z (N, d), unit length; v (b, w_v) of layers 1, 2, ..."""
    f = visual_prompt(W, x, v[0] if len(v) else None)
    f = norm(W, "visual.ln_pre.", f)
    for i, name in enumerate(layers(W, "visual.")):
        if 0 < i < len(v):                                          # From MaPLe: replaced anew
            f = torch.cat([f[:, :-len(v[i])], v[i].expand(len(f), -1, -1)], dim=1)
        f = layer(W, name, f)
    return F.normalize(norm(W, "visual.ln_post.", f)[:, 0] @ W["visual.proj"], dim=-1)


# Sec. 3.1: three learners, P -> z (N, d) and g (K, d) ------------------------------------------

def coop(W, P, template, names, x):
    return G_v(W, x), G_l(W, *text_prompts(W, template, names, P["ctx"]))


def cocoop(W, P, template, names, x):
    """Each image has prompts of its own, u + h(z), and so g is (N, K, d)."""
    z = G_v(W, x)
    h = linear(P, "meta_net.linear2.", F.relu(linear(P, "meta_net.linear1.", z)))       # (N, w)
    g = [G_l(W, *text_prompts(W, template, names, P["ctx"] + h_n)) for h_n in h]
    return z, torch.stack(g)


def maple(W, P, template, names, x):
    """Tokens in both towers and in J layers; the visual ones are projections, v = F(u)."""
    deep = range(sum(name.startswith("compound_prompts_text.") for name in P))
    u = [P["ctx"], *(P[f"compound_prompts_text.{j}"] for j in deep)]                    # (b, w)
    v = [linear(P, "proj.", u[0]),
         *(linear(P, f"compound_prompt_projections.{j}.", u[1 + j]) for j in deep)]     # (b, w_v)
    return G_v(W, x, v), G_l(W, *text_prompts(W, template, names, u[0]), u[1:])


# Eqs. (1), (5)-(7), one image n and one pair of classes i, j at a time -------------------------

def p_soft(z, g, lam):
    """Eq. (1) for one image: z (d,), g (K, d) -> K probabilities."""
    e = torch.exp(g @ z / lam)
    return e / e.sum()


def L_CLIP(z, g, y, lam):
    """Below Eq. (7), with the logarithm that the print lacks; g (N, K, d): each image's texts."""
    N = len(z)
    return -sum(torch.log(p_soft(z[n], g[n], lam)[y[n]]) for n in range(N)) / N


def L_LC(g, E_W=1.0):
    """Eq. (5) for one set of texts g (K, d), its mean over the K (K - 1) ordered pairs."""
    K = len(g)
    mu = -1 / (K - 1)
    pairs = [(i, j) for i in range(K) for j in range(K) if i != j]
    return sum((g[i] @ g[j] - E_W * mu) ** 2 for i, j in pairs) / len(pairs)


def L_MI(z, g, y, E_W=1.0, E_H=1.0):
    """Eq. (6), its mean over the batch."""
    N = len(z)
    return sum((z[n] @ g[n, y[n]] - math.sqrt(E_W * E_H)) ** 2 for n in range(N)) / N


def L(z, g, y, lam, w1=0.3, w2=0.8, E_W=1.0, E_H=1.0):
    """Eq. (7) -> loss, L_CLIP, L_LC, L_MI; the features' lengths meet E_W and E_H exactly."""
    N = len(z)
    g = g.expand(N, *g.shape[-2:])                                  # (N, K, d)
    l_clip = L_CLIP(z, g, y, lam)
    z, g = math.sqrt(E_H) * z, math.sqrt(E_W) * g
    l_lc = sum(L_LC(g[n], E_W) for n in range(N)) / N
    l_mi = L_MI(z, g, y, E_W, E_H)
    return l_clip + w1 * l_lc + w2 * l_mi, l_clip, l_lc, l_mi


@torch.no_grad()
def sgd_step(P, gradients, speed, lr):
    """SGD, Sec. 5, with MaPLe's momentum 0.9 and weight decay 5e-4; changes P and speed."""
    for name, gradient in zip(P, gradients, strict=True):
        speed[name] = 0.9 * speed.get(name, 0) + gradient + 5e-4 * P[name]
        P[name] -= lr * speed[name]


def forward(learner, x):
    """A learner of prompts.py from its tensors alone -> logits (N, K), z, g as it returns them."""
    W = dict(learner.clip.named_parameters())
    P = {name: p for name, p in learner.named_parameters() if not name.startswith("clip.")}
    method = {"CoOp": coop, "CoCoOp": cocoop, "MaPLe": maple}[type(learner).__name__]
    unworded = learner.n_learned - learner.n_replaced   # From CoOp: an X where no word is replaced
    z, g = method(W, P, "X " * unworded + learner.template, learner.classnames, x)
    texts = g.expand(len(z), *g.shape[-2:])                             # each image's own
    cosines = torch.stack([texts[n] @ z[n] for n in range(len(z))])
    return cosines * W["logit_scale"].exp(), z, g
