"""The textbook form of CLIP and the prompt learners: every class by itself, all 77 positions, every layer in full.

It is the oracle for the fast forms in clip_model.py and prompts.py and the baseline of benchmark.py. It shares no code
with them: it reads the weights by name and calls torch's own attention. Nothing here is clever on purpose.
"""
import torch
import torch.nn.functional as F

import clip_model


def attention(weights, name, x, mask):
    """torch's multi-head attention on x (N, T, w)."""
    w = x.shape[-1]
    x = x.transpose(0, 1)
    y, _ = F.multi_head_attention_forward(
        x, x, x, w, w // 64, weights[name + "in_proj_weight"], weights[name + "in_proj_bias"], None, None, False, 0.0,
        weights[name + "out_proj.weight"], weights[name + "out_proj.bias"], need_weights=False, attn_mask=mask)
    return y.transpose(0, 1)


def norm(weights, name, x):
    return F.layer_norm(x, x.shape[-1:], weights[name + "weight"], weights[name + "bias"])


def block(weights, name, x, mask=None):
    x = x + attention(weights, name + "attn.", norm(weights, name + "ln_1.", x), mask)
    y = F.linear(norm(weights, name + "ln_2.", x), weights[name + "mlp.c_fc.weight"], weights[name + "mlp.c_fc.bias"])
    y = y * torch.sigmoid(1.702 * y)
    return x + F.linear(y, weights[name + "mlp.c_proj.weight"], weights[name + "mlp.c_proj.bias"])


def layers(weights, name):
    return len({n.split("resblocks.")[1].split(".")[0] for n in weights if n.startswith(name)})


def image_tower(weights, images, prompts=()):
    """prompts: one (b, w_v) tensor for each prompted layer."""
    x = F.conv2d(images, weights["visual.conv1.weight"], stride=weights["visual.conv1.weight"].shape[-1])
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([weights["visual.class_embedding"].expand(len(x), 1, -1), x], dim=1)
    x = x + weights["visual.positional_embedding"]
    if prompts:
        x = torch.cat([x, prompts[0].expand(len(x), -1, -1)], dim=1)
    x = norm(weights, "visual.ln_pre.", x)
    for i in range(layers(weights, "visual.transformer.resblocks.")):
        if 0 < i < len(prompts):
            x = torch.cat([x[:, :-len(prompts[i])], prompts[i].expand(len(x), -1, -1)], dim=1)
        x = block(weights, f"visual.transformer.resblocks.{i}.", x)
    return F.normalize(norm(weights, "visual.ln_post.", x)[:, 0] @ weights["visual.proj"], dim=-1)


def text_tower(weights, embedded, ends, deep=()):
    """embedded (N, 77, w) token vectors; ends (N,) end positions; deep: (b, w) tensors for layers 1, 2, ..."""
    x = embedded + weights["positional_embedding"]
    mask = torch.full((77, 77), float("-inf"), dtype=x.dtype, device=x.device).triu(1)
    for i in range(layers(weights, "transformer.resblocks.")):
        if 0 < i <= len(deep):
            b = len(deep[i - 1])
            x = torch.cat([x[:, :1], deep[i - 1].expand(len(x), -1, -1), x[:, 1 + b:]], dim=1)
        x = block(weights, f"transformer.resblocks.{i}.", x, mask)
    x = norm(weights, "ln_final.", x)[torch.arange(len(x)), ends]
    return F.normalize(x @ weights["text_projection"], dim=-1)


def forward(learner, images):
    """(logits, z, g) of a CoOp, CoCoOp or MaPLe learner, as its own forward gives them."""
    weights = dict(learner.clip.named_parameters())
    names = [n.replace("_", " ") for n in learner.classnames]
    tokens = clip_model.tokenize([f"{learner.start} {n}." for n in names]).to(images.device)
    ends = tokens.argmax(dim=1)
    embedded = weights["token_embedding.weight"][tokens]                                # (K, 77, w)
    method, b = type(learner).__name__, learner.n_learned

    def with_context(ctx):                                                              # (b, w) or (K, b, w)
        ctx = ctx.expand(len(embedded), -1, -1)
        return torch.cat([embedded[:, :1], ctx, embedded[:, 1 + b:]], dim=1)

    if method == "MaPLe":
        deep = list(learner.compound_prompts_text)
        visual = [learner.proj(learner.ctx)]
        visual += [project(u) for project, u in zip(learner.compound_prompt_projections, deep)]
        z = image_tower(weights, images, visual)
        g = text_tower(weights, with_context(learner.ctx), ends, deep)
    elif method == "CoCoOp":
        z = image_tower(weights, images)
        shifts = learner.meta_net.linear2(F.relu(learner.meta_net.linear1(z)))
        g = torch.stack([text_tower(weights, with_context(learner.ctx + shift), ends) for shift in shifts])
        logits = torch.stack([z[i] @ g[i].T for i in range(len(z))]) * weights["logit_scale"].exp()
        return logits, z, g
    else:
        z = image_tower(weights, images)
        g = text_tower(weights, with_context(learner.ctx), ends)
    return z @ g.T * weights["logit_scale"].exp(), z, g
