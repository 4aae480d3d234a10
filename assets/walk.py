"""A walk of twenty minutes through one step of MaPLe + NPT, with every shape and number printed.

    python assets/walk.py               # the stations' outputs
    python assets/walk.py --page        # puts their code and outputs into walk.md

Four pictures of the embedded world, the tiny CLIP, 12 base classes. Each station is a function that
takes earlier values by name; its lines up to the first empty one are the code that walk.md shows.
The mathematics is that of tests/textbook.py, one image and one pair of classes at a time; the last
station does the same step with the fast modules.
"""
import contextlib
import inspect
import io
import re
import sys
import textwrap
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import textbook

import clip_model
import data
import losses
import prompts

PAGE = Path(__file__).with_name("walk.md")


def row(values, digits=4):
    return " ".join(f"{value:{digits + 3}.{digits}f}" for value in values.tolist())


# The stations -------------------------------------------------------------------------------------

def the_batch():
    """Four pictures and twelve names"""
    dataset, clip = data.load("world"), clip_model.load("tiny")
    names = dataset.classnames[:12]
    view = data.transform(clip.visual.resolution, train=False)
    pictures = data.Pictures(dataset, dataset.train[:384:96], view)
    x = torch.stack([image for image, _ in pictures])                       # (N, 3, res, res)
    y = [label for _, label in pictures]

    print(f"x {tuple(x.shape)}, from {x.min():.2f} to {x.max():.2f}")
    for n, k in enumerate(y):
        print(f"image {n + 1}: class {k + 1:2} of {len(names)}, {names[k]}")
    return {"clip": clip, "names": names, "x": x, "y": y}


def learned_and_frozen(clip, names):
    """What is learned, what is frozen"""
    torch.manual_seed(1)
    learner = prompts.build("maple", clip, names, n_ctx=2, ctx_init="a photo of a")
    W, P = dict(clip.named_parameters()), prompts.trainable(learner)

    for name, p in P.items():
        print(f"{name:37} {str(tuple(p.shape)):10} {p.numel():9,}")
    learned, frozen = (sum(p.numel() for p in tensors.values()) for tensors in (P, W))
    print(f"learned: {len(P)} tensors, {learned:,} numbers, J = {learner.prompt_depth} layers")
    print(f"frozen:  {len(W)} tensors, {frozen:,} numbers; learned are "
          f"{100 * learned / (learned + frozen):.1f} % of all")
    print(f"gradients wanted by frozen tensors: {sum(p.requires_grad for p in W.values())}")
    return {"learner": learner, "W": W, "P": P}


def text_prompts(learner, W, P):
    """t_k, the text prompts (Sec. 3.1)"""
    t, ends = textbook.text_prompts(W, learner.template, learner.classnames, P["ctx"])

    prompt, b = learner.prompt(learner.classnames[0]), len(P["ctx"])
    words = ["start", *prompt.replace(".", " .").split(), "end"]
    places = ["start", *(f"u_{j + 1}" for j in range(b)), *words[1 + b:]]
    print(f"class 1: \"{prompt}\" -> {learner.show_prompt(learner.classnames[0])}")
    print(f"t_1 = [{', '.join(places)}], then padding up to position {t.shape[1] - 1}")
    for j in range(b):
        print(f"u_{j + 1} at position {j + 1} is learned; it starts at the vector of "
              f"\"{words[1 + j]}\"")
    print(f"t {tuple(t.shape)} = (K, 77, w); u {tuple(P['ctx'].shape)}: the same two rows in all "
          f"{len(t)} prompts")
    print(f"end token, where g_k is read, by class: {' '.join(map(str, ends.tolist()))}")
    return {"t": t, "ends": ends}


def visual_prompts(W, P, x):
    """f, the visual prompts (Sec. 3.1)"""
    deep = range(sum(name.startswith("compound_prompts_text.") for name in P))
    u = [P["ctx"], *(P[f"compound_prompts_text.{j}"] for j in deep)]        # J times (b, w)
    v = [textbook.linear(P, "proj.", u[0]),
         *(textbook.linear(P, f"compound_prompt_projections.{j}.", u[1 + j]) for j in deep)]
    f = textbook.visual_prompt(W, x, v[0])                                  # (N, tokens, w_v)

    patches = f.shape[1] - 1 - len(v[0])
    print(f"u {tuple(u[0].shape)} -> v {tuple(v[0].shape)}, in each of {len(u)} layers")
    print(f"f {tuple(f.shape)} = (N, 1 class token + {patches} patches + {len(v[0])} v, w_v)")
    return {"u": u, "v": v}


def text_features(W, t, ends, u):
    """g = G_l(t), the text features"""
    g = textbook.G_l(W, t, ends, u[1:])                                     # (K, d)

    S, K = g @ g.T, len(g)
    pairs = S[~torch.eye(K, dtype=torch.bool)]
    print(f"g {tuple(g.shape)} = (K, d), lengths {row(g.norm(dim=1)[:3], 3)} ...")
    print("<g_i, g_j> of classes 1 to 4:")
    for cosines in S[:4, :4]:
        print(f"  {row(cosines)}")
    print(f"over all {len(pairs)} pairs: smallest {pairs.min():.4f}, mean {pairs.mean():.4f}, "
          f"largest {pairs.max():.4f}; mu {-1 / (K - 1):.4f}")
    return {"g": g}


def image_features(W, x, v, g, y):
    """z = G_v(f), the image features"""
    z = textbook.G_v(W, x, v)                                               # (N, d)

    cosines, K = z @ g.T, len(g)
    print(f"z {tuple(z.shape)} = (N, d), lengths {row(z.norm(dim=1), 3)}")
    print(f"<z_n, g_k>, a row an image, a column each of the {K} classes:")
    for of_image in cosines:
        print(f"  {row(of_image, 2)}")
    for n, k in enumerate(y):
        others = [cosines[n, i].item() for i in range(K) if i != k]
        print(f"image {n + 1}: <z, g> of its own text {cosines[n, k]:.4f}; of others: mean "
              f"{sum(others) / len(others):.4f}, largest {max(others):.4f}")
    return {"z": z}


def equation_1(W, z, g, y, names):
    """Eq. (1), logits and probabilities"""
    lam = torch.exp(-W["logit_scale"])
    logits = z @ g.T / lam                                                  # (N, K), <z, g>/lambda
    p = torch.stack([textbook.p_soft(z_n, g, lam) for z_n in z])            # (N, K), Eq. (1)

    print(f"lambda {lam:.4f}, 1/lambda {1 / lam:.2f}")
    print("image 1, the four likeliest classes:")
    for k in p[0].argsort(descending=True)[:4].tolist():
        mark = "  <- its own" if k == y[0] else ""
        print(f"  {names[k]:15} <z, g> {z[0] @ g[k]:7.4f}  logit {logits[0, k]:8.3f}  "
              f"p {p[0, k]:.4f}{mark}")
    for n, k in enumerate(y):
        right = "right" if p[n].argmax() == k else "wrong"
        print(f"image {n + 1}: p of its own class {p[n, k]:.4f}, {right}")
    return {"lam": lam, "p": p}


def equation_5(g):
    """Eq. (5), L_LC: texts apart"""
    K = len(g)                                                              # K(K-1) pairs i != j
    mu = -1 / (K - 1)
    l_lc = textbook.L_LC(g)                                                 # Eq. (5), their mean

    print(f"mu {mu:.4f}")
    for i, j in ((0, 1), (0, 2), (1, 2)):
        miss = (g[i] @ g[j]).item() - mu
        print(f"<g_{i + 1}, g_{j + 1}> {miss + mu:.4f}, minus mu {miss:.4f}, squared {miss**2:.4f}")
    shared, unequal = losses.lc_parts(g)
    print(f"... {K * (K - 1)} pairs: sum {K * (K - 1) * l_lc:.4f}, L_LC = mean {l_lc:.4f}")
    print(f"Delta_LCD = mean of all <g_i, g_j> - mu = {losses.delta_lcd(g):.4f} (Def. 2)")
    print(f"L_LC {l_lc:.4f} = Delta_LCD^2 {shared:.4f} + Var {unequal:.4f}")
    return {"l_lc": l_lc}


def equation_6(z, g, y):
    """Eq. (6), L_MI: each image onto its text"""
    l_mi = textbook.L_MI(z, g.expand(len(z), *g.shape), y)                  # Eq. (6), mean

    for n, k in enumerate(y):
        own = (z[n] @ g[k]).item()
        print(f"<z_{n + 1}, g_{k + 1}> {own:.4f}, minus 1 {own - 1:.4f}, "
              f"squared {(own - 1) ** 2:.4f}")
    print(f"sum {len(z) * l_mi:.4f}, L_MI = mean {l_mi:.4f}")
    return {"l_mi": l_mi}


def equation_7(z, g, y, lam, l_lc, l_mi):
    """Eq. (7), the loss"""
    w1, w2 = 0.3, 0.8                                                       # Sec. 5
    l_clip = textbook.L_CLIP(z, g.expand(len(z), *g.shape), y, lam)
    terms = {"L_CLIP": l_clip, "w_1 L_LC": w1 * l_lc, "w_2 L_MI": w2 * l_mi}
    loss = sum(terms.values())                                              # Eq. (7)

    print(f"L_CLIP = mean of -log p: {l_clip:.4f}")
    print(f"L {loss:.4f} = L_CLIP {l_clip:.4f} + {w1} L_LC {l_lc:.4f} + {w2} L_MI {l_mi:.4f}")
    print(f"          = {' + '.join(f'{term:.4f}' for term in terms.values())}")
    return {"w1": w1, "w2": w2, "l_clip": l_clip, "terms": terms, "loss": loss}


def gradients(loss, terms, P, g):
    """Gradients: which term pulls at what"""
    learned = list(P.values())
    every = torch.autograd.grad(loss, learned, retain_graph=True)
    each = {term: torch.autograd.grad(value, learned, retain_graph=True, allow_unused=True)
            for term, value in terms.items()}

    print(f"{'':37} {'L':>9} " + " ".join(f"{term:>9}" for term in each))
    for i, name in enumerate(P):
        lengths = [gradient[i] for gradient in (every, *each.values())]
        print(f"{name:37} " + " ".join(
            f"{'-':>9}" if length is None else f"{length.norm():9.4f}" for length in lengths))
    pairs, of_u = len(g) * (len(g) - 1), each["w_1 L_LC"][0].norm()
    print(f"w_1 L_LC as the printed sum: {pairs} times as long, at ctx {pairs * of_u:.4f}")
    return {"every": every, "each": each}


def one_step(W, P, every):
    """One step of SGD"""
    lr = 0.0035                                                             # Sec. 5
    before = {name: p.detach().clone() for name, p in {**W, **P}.items()}
    textbook.sgd_step(P, every, speed={}, lr=lr)                            # changes P in place

    print(f"u_1[0]: {before['ctx'][0, 0]:.6f} - {lr} ({every[0][0, 0]:.6f} + 0.0005 "
          f"{before['ctx'][0, 0]:.6f}) = {P['ctx'][0, 0]:.6f}")
    for name, p in P.items():
        change = p.detach() - before[name]
        print(f"{name:37} largest {change.abs().max():.6f}, relative "
              f"{change.norm() / before[name].norm():.5f}")
    changed = sum(not torch.equal(p, before[name]) for name, p in W.items())
    print(f"frozen tensors that changed: {changed} of {len(W)}")
    return {"lr": lr, "before": before}


def after_the_step(W, P, learner, x, y, lam, w1, w2, lr, z, g, p, loss, l_clip, l_lc, l_mi, every,
                   each):
    """What the step did"""
    with torch.no_grad():
        z_1, g_1 = textbook.maple(W, P, learner.template, learner.classnames, x)
        loss_1, *terms_1 = textbook.L(z_1, g_1, y, lam, w1, w2)

    moved = [f"{name} {old:.4f} -> {new:.4f}" for name, old, new in zip(
        ("L_CLIP", "L_LC", "L_MI"), (l_clip, l_lc, l_mi), terms_1, strict=True)]
    print(f"L {loss:.4f} -> {loss_1:.4f}: {', '.join(moved)}")
    for n, k in enumerate(y):
        print(f"image {n + 1}: p of its own class {p[n, k]:.4f} -> "
              f"{textbook.p_soft(z_1[n], g_1, lam)[k]:.4f}")
    along = sum((a * b).sum() for a, b in zip(every, each["w_1 L_LC"], strict=True)
                if b is not None) / w1
    print(f"L_LC along the step: -lr <its gradient, the gradient of L> = {-lr * along:+.4f}, and "
          f"it moved by {terms_1[1] - l_lc:+.4f}")
    move = g_1 - g
    inside = move.norm(dim=1)[sorted(set(y))]
    outside = move.norm(dim=1)[[k for k in range(len(g)) if k not in y]]
    print(f"texts moved by {inside.mean():.4f} on average where the class is in the batch, by "
          f"{outside.mean():.4f} where not")
    print(f"common to all {len(g)} texts: "
          f"{100 * move.mean(dim=0).square().sum() / move.square().sum(dim=1).mean():.1f} %")
    return {}


def in_words(W, P, u, before):
    """What was learned, in words"""
    vectors = W["token_embedding.weight"]
    known = vectors.norm(dim=1).nonzero()[:, 0]                 # the tiny CLIP never saw the others
    nearest = [torch.cdist(u_layer.detach(), vectors[known]).sort(dim=1) for u_layer in u]

    words = {i: symbol.removesuffix("</w>") for symbol, i in clip_model.Tokenizer().ids.items()}
    between = torch.cdist(vectors[known], vectors[known]).kthvalue(2, dim=1).values
    print(f"known are {len(known)} of {len(vectors):,} tokens; from each to the next it is "
          f"{between.mean():.4f} on average")
    names = [name for name in P if P[name].shape == u[0].shape]
    for i, (distances, order) in enumerate(nearest):
        for j, u_j in enumerate(u[i]):
            three = [f"{words[known[k].item()]} {distances[j, n]:.4f}"
                     for n, k in enumerate(order[j, :3])]
            print(f"layer {i + 1}, u_{j + 1}: moved by {(u_j - before[names[i]][j]).norm():.4f}; "
                  f"nearest: {', '.join(three)}")
    return {}


def fast_form(clip, names, x, y, w1, w2, lr, P, z, g, loss, every):
    """The same step as train.py does it"""
    torch.manual_seed(1)
    learner = prompts.build("maple", clip, names, n_ctx=2, ctx_init="a photo of a")
    learned = prompts.trainable(learner)
    optimizer = torch.optim.SGD(learned.values(), lr=lr, momentum=0.9, weight_decay=5e-4)
    logits, z_f, g_f = learner(x)                                           # Eq. (1)
    loss_f, terms_f = losses.npt_loss(logits, z_f, g_f, torch.tensor(y), w1=w1, w2=w2)  # Eq. (7)
    loss_f.backward()
    optimizer.step()

    pairs = {"z": ([z_f], [z]), "g": ([g_f], [g]), "L": ([loss_f], [loss]),
             "gradients": ([p.grad for p in learned.values()], every),
             "learned": (learned.values(), P.values())}
    print(f"logits {tuple(logits.shape)}, z {tuple(z_f.shape)}, g {tuple(g_f.shape)}")
    print(f"L {loss_f.item():.4f} = L_CLIP {terms_f['l_clip']:.4f} + {w1} L_LC "
          f"{terms_f['l_lc']:.4f} + {w2} L_MI {terms_f['l_mi']:.4f}")
    for name, (fast, slow) in pairs.items():
        largest = max((a - b).abs().max().item() for a, b in zip(fast, slow, strict=True))
        print(f"largest difference, {name + ':':11} {largest:.0e}")
    return {}


STATIONS = (the_batch, learned_and_frozen, text_prompts, visual_prompts, text_features,
            image_features, equation_1, equation_5, equation_6, equation_7, gradients, one_step,
            after_the_step, in_words, fast_form)


# The walk -----------------------------------------------------------------------------------------

def walk():
    """All stations in order -> what each printed, and the values they passed on by name."""
    outputs, values = [], {}
    for station in STATIONS:
        out = io.StringIO()
        wanted = inspect.signature(station).parameters
        with contextlib.redirect_stdout(out):
            values |= station(**{name: values[name] for name in wanted})
        outputs.append(out.getvalue())
    return outputs, values


def code(station):
    """A station's lines between its docstring and its first empty one, without the indentation."""
    body = inspect.getsource(station).split('"""\n', 1)[1]
    return textwrap.dedent(body.split("\n\n")[0]).strip("\n")


def page(text, outputs):
    """walk.md with these outputs and the code as it is now; its sentences are written by hand."""
    head, *parts = re.split(r"(?=^## \d+\. )", text, flags=re.M)
    for i, (station, output) in enumerate(zip(STATIONS, outputs, strict=True)):
        blocks = f"```python\n{code(station)}\n```\n\n```\n{output}```\n"
        parts[i] = re.sub(r"```python\n[^`]*```\n\n```\n[^`]*```\n", lambda _, new=blocks: new,
                          parts[i])
    return "".join([head, *parts])


def main(argv=None):
    p = data.Parser(description="One step of MaPLe + NPT, station by station.")
    p.add_argument("--page", action="store_true", help="renew walk.md instead of printing")

    def job():
        args = p.parse_args(argv)
        outputs, _ = walk()
        if args.page:
            data.write(PAGE, page(PAGE.read_text(encoding="utf-8"), outputs))
            return
        for number, (station, output) in enumerate(zip(STATIONS, outputs, strict=True), 1):
            print(f"{number}. {station.__doc__}\n\n{textwrap.indent(output, '  ')}")

    return data.run_script(job)


if __name__ == "__main__":
    sys.exit(main())
