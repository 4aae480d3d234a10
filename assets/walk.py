"""A walk of twenty minutes through one step of MaPLe + NPT, with every shape and number printed.

    python assets/walk.py               # the stations' outputs
    python assets/walk.py --page        # puts them into walk.md

Four pictures of the embedded world, the tiny CLIP, 12 base classes. The code of the step stands in
walk.md alone and is run from there; here is what each station shows of it, a function a station,
which takes the page's values by name. The mathematics is that of tests/textbook.py, one image and
one pair of classes at a time; the last station does the same step with the fast modules.
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

PAGE = Path(__file__).with_name("walk.md")


def row(values, digits=4):
    return " ".join(f"{value:{digits + 3}.{digits}f}" for value in values.tolist())


# What each station shows --------------------------------------------------------------------------

def the_batch(x, y, names):
    print(f"x {tuple(x.shape)}, from {x.min():.2f} to {x.max():.2f}")
    for n, k in enumerate(y):
        print(f"image {n + 1}: class {k + 1:2} of {len(names)}, {names[k]}")


def learned_and_frozen(learner, W, P):
    for name, p in P.items():
        print(f"{name:37} {str(tuple(p.shape)):10} {p.numel():9,}")
    learned, frozen = (sum(p.numel() for p in tensors.values()) for tensors in (P, W))
    print(f"learned: {len(P)} tensors, {learned:,} numbers, J = {learner.prompt_depth} layers")
    print(f"frozen:  {len(W)} tensors, {frozen:,} numbers; learned are "
          f"{100 * learned / (learned + frozen):.1f} % of all")
    print(f"gradients wanted by frozen tensors: {sum(p.requires_grad for p in W.values())}")


def text_prompts(learner, P, t, ends):
    prompt, b = learner.prompt(learner.classnames[0]), len(P["ctx"])
    words = ["start", *prompt.replace(".", " .").split(), "end"]
    places = ["start", *(f"u_{j + 1}" for j in range(b)), *words[1 + b:]]
    print(f"class 1: \"{prompt}\" -> {learner.show_prompt(learner.classnames[0])}")
    print(f"t_1 = [{', '.join(places)}], then padding up to position {t.shape[1] - 1}")
    print(f"t {tuple(t.shape)} = (K, 77, w); u {tuple(P['ctx'].shape)}: the same two rows in all "
          f"{len(t)} prompts")
    print(f"end token, where g_k is read, by class: {' '.join(map(str, ends.tolist()))}")


def visual_prompts(u, v, f):
    patches = f.shape[1] - 1 - len(v[0])
    print(f"u {tuple(u[0].shape)} -> v {tuple(v[0].shape)}, in each of {len(u)} layers")
    print(f"f {tuple(f.shape)} = (N, 1 class token + {patches} patches + {len(v[0])} v, w_v)")


def text_features(g):
    S, K = g @ g.T, len(g)
    pairs = S[~torch.eye(K, dtype=torch.bool)]
    print(f"g {tuple(g.shape)} = (K, d), lengths {row(g.norm(dim=1)[:3], 3)} ...")
    print("<g_i, g_j> of classes 1 to 4:")
    for cosines in S[:4, :4]:
        print(f"  {row(cosines)}")
    print(f"over all {len(pairs)} pairs: smallest {pairs.min():.4f}, mean {pairs.mean():.4f}, "
          f"largest {pairs.max():.4f}; mu {-1 / (K - 1):.4f}")


def image_features(z, g):
    print(f"z {tuple(z.shape)} = (N, d), lengths {row(z.norm(dim=1), 3)}")
    print(f"<z_n, g_k>, a row an image, a column each of the {len(g)} classes:")
    for cosines in z @ g.T:
        print(f"  {row(cosines, 2)}")


def equation_1(z, g, y, names, lam, logits, p):
    print(f"lambda {lam:.4f}, 1/lambda {1 / lam:.2f}")
    print("image 1, the four likeliest classes:")
    for k in p[0].argsort(descending=True)[:4].tolist():
        mark = "  <- its own" if k == y[0] else ""
        print(f"  {names[k]:15} <z, g> {z[0] @ g[k]:7.4f}  logit {logits[0, k]:8.3f}  "
              f"p {p[0, k]:.4f}{mark}")
    for n, k in enumerate(y):
        right = "right" if p[n].argmax() == k else "wrong"
        print(f"image {n + 1}: p of its own class {p[n, k]:.4f}, {right}")


def equation_5(g, K, mu, l_lc):
    print(f"mu {mu:.4f}")
    for i, j in ((0, 1), (0, 2), (1, 2)):
        miss = (g[i] @ g[j]).item() - mu
        print(f"<g_{i + 1}, g_{j + 1}> {miss + mu:.4f}, minus mu {miss:.4f}, squared {miss**2:.4f}")
    shared, unequal = losses.lc_parts(g)
    print(f"... {K * (K - 1)} pairs: sum {K * (K - 1) * l_lc:.4f}, L_LC = mean {l_lc:.4f}")
    print(f"Delta_LCD = mean of all <g_i, g_j> - mu = {losses.delta_lcd(g):.4f} (Def. 2)")
    print(f"L_LC {l_lc:.4f} = Delta_LCD^2 {shared:.4f} + Var {unequal:.4f}")


def equation_6(z, g, y, l_mi):
    for n, k in enumerate(y):
        own = (z[n] @ g[k]).item()
        print(f"<z_{n + 1}, g_{k + 1}> {own:.4f}, minus 1 {own - 1:.4f}, "
              f"squared {(own - 1) ** 2:.4f}")
    print(f"sum {len(z) * l_mi:.4f}, L_MI = mean {l_mi:.4f}")


def equation_7(w1, w2, l_clip, l_lc, l_mi, terms, loss):
    print(f"L_CLIP = mean of -log p: {l_clip:.4f}")
    print(f"L {loss:.4f} = L_CLIP {l_clip:.4f} + {w1} L_LC {l_lc:.4f} + {w2} L_MI {l_mi:.4f}")
    print(f"          = {' + '.join(f'{term:.4f}' for term in terms.values())}")


def gradients(P, g, every, each):
    print(f"{'':37} {'L':>9} " + " ".join(f"{term:>9}" for term in each))
    for i, name in enumerate(P):
        lengths = [gradient[i] for gradient in (every, *each.values())]
        print(f"{name:37} " + " ".join(
            f"{'-':>9}" if length is None else f"{length.norm():9.4f}" for length in lengths))
    pairs, of_u = len(g) * (len(g) - 1), each["w_1 L_LC"][0].norm()
    print(f"w_1 L_LC as the printed sum: {pairs} times as long, at ctx {pairs * of_u:.4f}")


def one_step(W, P, every, lr, before):
    print(f"u_1[0]: {before['ctx'][0, 0]:.6f} - {lr} ({every[0][0, 0]:.6f} + 0.0005 "
          f"{before['ctx'][0, 0]:.6f}) = {P['ctx'][0, 0]:.6f}")
    for name, p in P.items():
        change = p.detach() - before[name]
        print(f"{name:37} largest {change.abs().max():.6f}, relative "
              f"{change.norm() / before[name].norm():.5f}")
    changed = sum(not torch.equal(p, before[name]) for name, p in W.items())
    print(f"frozen tensors that changed: {changed} of {len(W)}")


def after_the_step(g, y, lam, p, w1, l_clip, l_lc, l_mi, loss, every, each, lr, z_1, g_1, loss_1,
                   terms_1):
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


def in_words(P, u, before, vectors, known, nearest):
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


def fast_form(w1, w2, P, z, g, loss, every, learned, logits, z_f, g_f, loss_f, terms_f):
    pairs = {"z": ([z_f], [z]), "g": ([g_f], [g]), "L": ([loss_f], [loss]),
             "gradients": ([p.grad for p in learned.values()], every),
             "learned": (learned.values(), P.values())}
    print(f"logits {tuple(logits.shape)}, z {tuple(z_f.shape)}, g {tuple(g_f.shape)}")
    print(f"L {loss_f.item():.4f} = L_CLIP {terms_f['l_clip']:.4f} + {w1} L_LC "
          f"{terms_f['l_lc']:.4f} + {w2} L_MI {terms_f['l_mi']:.4f}")
    for name, (fast, slow) in pairs.items():
        largest = max((a - b).abs().max().item() for a, b in zip(fast, slow, strict=True))
        print(f"largest difference, {name + ':':11} {largest:.0e}")


STATIONS = (the_batch, learned_and_frozen, text_prompts, visual_prompts, text_features,
            image_features, equation_1, equation_5, equation_6, equation_7, gradients, one_step,
            after_the_step, in_words, fast_form)


# The walk -----------------------------------------------------------------------------------------

def parts(text):
    """walk.md -> what stands before its first station, and each station from its title on."""
    return re.split(r"(?m)^## (?=\d+\. )", text)


def walk(text):
    """Run the page's code, station by station -> what each shows, and all names of that code."""
    outputs, names = [], {}
    for show, part in zip(STATIONS, parts(text)[1:], strict=True):
        code = "".join(re.findall(r"```python\n([^`]*)```\n", part))
        exec(compile(code, part.partition("\n")[0], "exec"), names)
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            show(**{name: names[name] for name in inspect.signature(show).parameters})
        outputs.append(out.getvalue())
    return outputs, names


def page(text, outputs):
    """walk.md with these outputs."""
    head, *stations = parts(text)
    new = [re.sub(r"(```\n\n```\n)[^`]*", lambda match, output=output: match[1] + output, station)
           for station, output in zip(stations, outputs, strict=True)]
    return "## ".join([head, *new])


def main(argv=None):
    p = data.Parser(description="One step of MaPLe + NPT, station by station.")
    p.add_argument("--page", action="store_true", help="renew walk.md instead of printing")

    def job():
        args = p.parse_args(argv)
        text = PAGE.read_text(encoding="utf-8")
        outputs, _ = walk(text)
        if args.page:
            data.write(PAGE, page(text, outputs))
            return
        for station, output in zip(parts(text)[1:], outputs, strict=True):
            print(station.partition("\n")[0], textwrap.indent(output, "  "), sep="\n\n")

    return data.run_script(job)


if __name__ == "__main__":
    sys.exit(main())
