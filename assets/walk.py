"""A walk of twenty minutes through one step of MaPLe + NPT, with every shape and number printed.

    python assets/walk.py               # the stations' outputs
    python assets/walk.py --page        # writes walk.md: sentences, code and outputs

Four pictures of the embedded world, the tiny CLIP, 12 base classes. Each station is a function:
its docstring is what walk.md says, its lines up to the first empty one are the code shown there.
The mathematics is that of tests/textbook.py, one image and one pair of classes at a time; the last
station does the same step with the fast modules.
"""
import contextlib
import inspect
import io
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import textbook

import clip_model
import data
import losses
import prompts
from assets import files

PAGE = Path(__file__).with_name("walk.md")
LR, W1, W2 = 0.0035, 0.3, 0.8                                   # Sec. 5
HEAD = """# A walk through one step of MaPLe + NPT

`python assets/walk.py --page` writes this page; `python assets/walk.py` prints the outputs alone.
Have the PDF open at Sec. 3.1 and walk down; it takes about twenty minutes. Functions that start
with `textbook.` stand in `tests/textbook.py`: one image and one pair of classes at a time, nothing
clever. The last digits of the outputs differ between machines.

    K   classes, here 12                N   images in the batch, here 4
    b   learned tokens of a layer       d   size of a feature z or g
    w   width of the text tower         w_v  width of the image tower
    W   the frozen CLIP's tensors       P   the learned tensors
"""


def numbers(values, digits=4):
    return " ".join(f"{value:.{digits}f}" for value in values.tolist())


# The stations ------------------------------------------------------------------------------------

def the_batch():
    """Four pictures and twelve names

    Only the first half of the 24 classes is trained: the base classes, K = 12 (Sec. 5.1). A batch
    has N = 4 pictures (Sec. 5), here of four different classes. CLIP wants them as tensors with
    three channels, of the size it was trained with, shifted and scaled by fixed numbers. Labels
    count from 0 in the code and from 1 in the paper.
    """
    dataset, clip = data.load("world"), clip_model.load("tiny")
    names = dataset.classnames[:12]
    view = data.transform(clip.visual.resolution, train=False)
    pictures = data.Pictures(dataset, dataset.train[:384:96], view)
    x = torch.stack([image for image, _ in pictures])                       # (N, 3, res, res)
    y = [label for _, label in pictures]

    print(f"x {tuple(x.shape)}, from {x.min():.2f} to {x.max():.2f}")
    for n, k in enumerate(y):
        print(f"image {n + 1}: class {k + 1:2} of {len(names)}, {names[k]}")
    return clip, names, x, y


def learned_and_frozen(clip, names):
    """What is learned, what is frozen

    MaPLe learns b = 2 tokens u for the text tower, anew in each of the first J layers, and for each
    layer a matrix that turns them into visual tokens, v = F(u). Nothing else has a gradient: all of
    CLIP stays as it was. The first u start at words; the deeper u and all F start at random, and
    so the seed matters.
    """
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
    return learner, W, P


def text_prompts(learner, W, P):
    """t_k, the text prompts (Sec. 3.1)

    The paper writes t_k = {u_1..u_b, c_k}. In CLIP a start token stands before it and an end token
    behind; the rest of the 77 positions is padding, which no token before it sees. From MaPLe: the
    template is "a photo of a {}.", and u_1, u_2 take the places of its first two words, whose
    vectors they start at. So "of a", the name and the full stop stay ordinary words.
    """
    t, ends = textbook.text_prompts(W, learner.template, learner.classnames, P["ctx"])

    prompt = learner.prompt(learner.classnames[0])
    words = ["start", *prompt.replace(".", " .").split(), "end"]
    print(f"class 1: \"{prompt}\" -> {learner.show_prompt(learner.classnames[0])}")
    for position, word in enumerate(words):
        what = "frozen"
        if 1 <= position <= len(P["ctx"]):
            what = f"learned, u_{position}; starts at the vector of this word"
        print(f"position {position}  {word:8} {what}")
    print(f"positions {len(words)} to {t.shape[1] - 1} are padding")
    print(f"t {tuple(t.shape)} = (K, 77, w); u {tuple(P['ctx'].shape)}: the same two rows in all "
          f"{len(t)} prompts")
    print(f"end token, where g_k is read, by class: {' '.join(map(str, ends.tolist()))}")
    return t, ends


def visual_prompts(W, P, x):
    """f, the visual prompts (Sec. 3.1)

    The image tower cuts a picture into patches and turns each into a vector; a class token stands
    in front. The paper writes f = {v_1..v_b, x}; in MaPLe's code, and here, v stand last, which
    changes nothing: every token of this tower sees all others, and v have no position vector. As v
    are computed from u, a gradient from the pictures reaches the text's tokens.
    """
    deep = range(sum(name.startswith("compound_prompts_text.") for name in P))
    u = [P["ctx"], *(P[f"compound_prompts_text.{j}"] for j in deep)]        # J times (b, w)
    v = [textbook.linear(P, "proj.", u[0]),
         *(textbook.linear(P, f"compound_prompt_projections.{j}.", u[1 + j]) for j in deep)]
    f = textbook.visual_prompt(W, x, v[0])                                  # (N, tokens, w_v)

    patches = f.shape[1] - 1 - len(v[0])
    print(f"u {tuple(u[0].shape)} -> v {tuple(v[0].shape)}, in each of {len(u)} layers")
    print(f"f {tuple(f.shape)} = (N, 1 class token + {patches} patches + {len(v[0])} v, w_v)")
    return u, v


def text_features(W, t, ends, u):
    """g = G_l(t), the text features

    t walks through the layers of the text tower. Layer 1 finds its u in t already; in layers 2 to J
    the two learned positions are filled anew with that layer's u. The vector at the end token is
    projected to d numbers and divided by its length. The cosine of two classes is then a plain dot
    product; in a simplex ETF all of them would be mu = -1/(K-1), Eq. (3).
    """
    g = textbook.G_l(W, t, ends, u[1:])                                     # (K, d)

    S, K = (g @ g.T).tolist(), len(g)
    cosines = [S[i][j] for i in range(K) for j in range(K) if i != j]
    print(f"g {tuple(g.shape)} = (K, d), lengths {numbers(g.norm(dim=1)[:3], 3)} ...")
    print("<g_i, g_j> of classes 1 to 4:")
    for row in S[:4]:
        print("  " + " ".join(f"{cosine:7.4f}" for cosine in row[:4]))
    print(f"over all {len(cosines)} pairs: smallest {min(cosines):.4f}, mean "
          f"{sum(cosines) / len(cosines):.4f}, largest {max(cosines):.4f}; mu {-1 / (K - 1):.4f}")
    return g


def image_features(W, x, v, g, y):
    """z = G_v(f), the image features

    f walks through the layers of the image tower, with that layer's v in its last two places: layer
    1's are in f already, layers 2 to J fill them anew. The vector at the class token is projected
    to the same d numbers and divided by its length. Compare an image's cosine with its own text and
    with the other texts: what counts for a prediction is their difference, not their size.
    """
    z = textbook.G_v(W, x, v)                                               # (N, d)

    cosines, K = z @ g.T, len(g)
    print(f"z {tuple(z.shape)} = (N, d), lengths {numbers(z.norm(dim=1), 3)}")
    for n, k in enumerate(y):
        others = [cosines[n, i].item() for i in range(K) if i != k]
        print(f"image {n + 1}: own text {cosines[n, k]:.4f}; other texts: mean "
              f"{sum(others) / len(others):.4f}, largest {max(others):.4f}")
    return z


def equation_1(W, z, g, y, names):
    """Eq. (1), logits and probabilities

    A logit is a cosine over the temperature lambda. CLIP stores log(1/lambda), its `logit_scale`,
    which is turned into lambda once. Exponentials of the logits over their sum are p_soft: a small
    difference of cosines becomes a large ratio of probabilities. The largest probability is the
    prediction.
    """
    lam = torch.exp(-W["logit_scale"])
    logits = z @ g.T / lam                                                  # (N, K)
    p = torch.stack([textbook.p_soft(z_n, g, lam) for z_n in z])            # (N, K), Eq. (1)

    print(f"lambda {lam:.4f}, 1/lambda {1 / lam:.2f}")
    print("image 1, the four likeliest classes:")
    for k in p[0].argsort(descending=True)[:4].tolist():
        mark = "  <- its own" if k == y[0] else ""
        print(f"  {names[k]:15} cosine {z[0] @ g[k]:7.4f}  logit {logits[0, k]:8.3f}  "
              f"p {p[0, k]:.4f}{mark}")
    for n, k in enumerate(y):
        right = "right" if p[n].argmax() == k else "wrong"
        print(f"image {n + 1}: p of its own class {p[n, k]:.4f}, {right}")
    return lam


def equation_5(g):
    """Eq. (5), L_LC: texts apart

    Each pair of classes should have the cosine mu = -1/(K-1); L_LC adds up the squared misses. No
    image and no label enters: a class with 1 image counts as much as a class with 16. The print is
    a sum over K(K-1) pairs; the code takes their mean unless asked, so that one w_1 serves every K.
    The mean is the square of Delta_LCD (Def. 2), what all texts share, plus the variance of the
    cosines, how unequal the angles are.
    """
    K = len(g)
    mu = -1 / (K - 1)
    l_lc = textbook.L_LC(g)                                                 # Eq. (5), mean

    print(f"mu {mu:.4f}")
    for i, j in ((0, 1), (0, 2), (1, 2)):
        miss = (g[i] @ g[j]).item() - mu
        print(f"<g_{i + 1}, g_{j + 1}> {miss + mu:.4f}, minus mu {miss:.4f}, squared {miss**2:.4f}")
    shared, unequal = losses.lc_parts(g)
    print(f"... {K * (K - 1)} pairs: sum {K * (K - 1) * l_lc:.4f}, L_LC = mean {l_lc:.4f}")
    print(f"Delta_LCD = mean of all <g_i, g_j> - mu = {losses.delta_lcd(g):.4f} (Def. 2)")
    print(f"L_LC {l_lc:.4f} = Delta_LCD^2 {shared:.4f} + Var {unequal:.4f}")
    return l_lc


def equation_6(z, g, y):
    """Eq. (6), L_MI: each image onto its text

    The cosine of an image and its own text should be sqrt(E_W E_H) = 1, which is the same point.
    The print sums over the training set; a step sees one batch, and the code takes its mean. Here
    classes do weigh by their number of images.
    """
    l_mi = textbook.L_MI(z, g.expand(len(z), *g.shape), y)                  # Eq. (6), mean

    for n, k in enumerate(y):
        own = (z[n] @ g[k]).item()
        print(f"<z_{n + 1}, g_{k + 1}> {own:.4f}, minus 1 {own - 1:.4f}, "
              f"squared {(own - 1) ** 2:.4f}")
    print(f"sum {len(z) * l_mi:.4f}, L_MI = mean {l_mi:.4f}")
    return l_mi


def equation_7(z, g, y, lam):
    """Eq. (7), the loss

    L_CLIP is the mean of -log p of the own classes: the logarithm is missing in print, but Sec. 4.3
    differentiates this. The weights w_1 = 0.3 and w_2 = 0.8 are those of Sec. 5. Mind which of the
    three terms is large: it differs between a start and an end of training.
    """
    loss, l_clip, l_lc, l_mi = textbook.L(z, g, y, lam, w1=W1, w2=W2)

    print(f"L_CLIP = mean of -log p: {l_clip:.4f}")
    print(f"L {loss:.4f} = L_CLIP {l_clip:.4f} + {W1} L_LC {l_lc:.4f} + {W2} L_MI {l_mi:.4f}")
    print(f"          = {l_clip:.4f} + {W1 * l_lc:.4f} + {W2 * l_mi:.4f}")
    return loss, {"L_CLIP": l_clip, "w_1 L_LC": W1 * l_lc, "w_2 L_MI": W2 * l_mi}


def gradients(loss, terms, P):
    """Gradients: which term pulls at what

    Lengths of the gradient of each term with respect to each learned tensor. L_LC looks at texts
    alone, so the projections F, which only make visual tokens, get nothing from it ("-"). The
    paper's Sec. 4.3 differentiates by a class's own t_k; here all classes share u, and one gradient
    is the sum of what all classes want.
    """
    every = torch.autograd.grad(loss, list(P.values()), retain_graph=True)
    each = {term: torch.autograd.grad(value, list(P.values()), retain_graph=True, allow_unused=True)
            for term, value in terms.items()}

    print(f"{'':37} {'L':>9} " + " ".join(f"{term:>9}" for term in each))
    for row, name in enumerate(P):
        lengths = [gradient[row] for gradient in (every, *each.values())]
        print(f"{name:37} " + " ".join(
            f"{'-':>9}" if length is None else f"{length.norm():9.4f}" for length in lengths))
    return every


def one_step(W, P, every):
    """One step of SGD

    p <- p - lr (gradient + 0.0005 p), with the paper's lr = 0.0035 and MaPLe's weight decay; the
    momentum 0.9 has nothing to add in a first step. (train.py starts with one epoch at 0.00001.)
    The table has the largest change of any number of a tensor, and the length of the whole change
    over the length of the tensor.
    """
    before = {name: p.detach().clone() for name, p in {**W, **P}.items()}
    textbook.sgd_step(P, every, speed={}, lr=LR)                            # changes P in place

    print(f"u_1[0]: {before['ctx'][0, 0]:.6f} - {LR} ({every[0][0, 0]:.6f} + 0.0005 "
          f"{before['ctx'][0, 0]:.6f}) = {P['ctx'][0, 0]:.6f}")
    for name, p in P.items():
        change = p.detach() - before[name]
        print(f"{name:37} largest {change.abs().max():.6f}, relative "
              f"{change.norm() / before[name].norm():.5f}")
    changed = sum(not torch.equal(p, before[name]) for name, p in W.items())
    print(f"frozen tensors that changed: {changed} of {len(W)}")


def after_the_step(W, P, learner, x, y, lam, earlier):
    """What the step did

    The same batch once more. Only tokens and projections were learned, yet every text moved, those
    of classes without an image in this batch too, because all prompts hold the same u. A part of
    the way is common to all texts: ||mean_k d_k||^2 / mean_k ||d_k||^2, where d_k is the move of
    g_k; Delta_LCD takes the g_k themselves apart in the same way. What is common moves all logits
    of an image alike and changes no prediction.
    """
    with torch.no_grad():
        z, g = textbook.maple(W, P, learner.template, learner.classnames, x)
        loss, l_clip, l_lc, l_mi = textbook.L(z, g, y, lam, w1=W1, w2=W2)

    print(f"L {earlier.loss:.4f} -> {loss:.4f}: L_CLIP {earlier.terms['L_CLIP']:.4f} -> "
          f"{l_clip:.4f}, L_LC {earlier.l_lc:.4f} -> {l_lc:.4f}, "
          f"L_MI {earlier.l_mi:.4f} -> {l_mi:.4f}")
    for n, k in enumerate(y):
        p = [textbook.p_soft(z_n, texts, lam)[k] for z_n, texts in
             ((earlier.z[n], earlier.g), (z[n], g))]
        print(f"image {n + 1}: p of its own class {p[0]:.4f} -> {p[1]:.4f}")
    move = g - earlier.g
    inside = move.norm(dim=1)[sorted(set(y))]
    outside = move.norm(dim=1)[[k for k in range(len(g)) if k not in y]]
    print(f"texts moved by {inside.mean():.4f} on average where the class is in the batch, by "
          f"{outside.mean():.4f} where not")
    print(f"common to all {len(g)} texts: "
          f"{100 * move.mean(dim=0).square().sum() / move.square().sum(dim=1).mean():.1f} %")


def fast_form(clip, names, x, y, P, earlier):
    """The same step as train.py does it

    prompts.py computes each common beginning of the prompts once and stops at the end token;
    losses.py has matrices in place of loops. The features, the loss, the gradients and the learned
    tensors after the step are the same up to rounding: the largest difference of each is printed.
    This is all you need in code of your own.
    """
    torch.manual_seed(1)
    learner = prompts.build("maple", clip, names, n_ctx=2, ctx_init="a photo of a")
    learned = prompts.trainable(learner)
    optimizer = torch.optim.SGD(learned.values(), lr=LR, momentum=0.9, weight_decay=5e-4)
    logits, z, g = learner(x)                                               # Eq. (1)
    loss, terms = losses.npt_loss(logits, z, g, torch.tensor(y), w1=W1, w2=W2)      # Eq. (7)
    loss.backward()
    optimizer.step()

    gradients = [p.grad for p in learned.values()]
    pairs = {"z": ([z], [earlier.z]), "g": ([g], [earlier.g]), "L": ([loss], [earlier.loss]),
             "gradients": (gradients, earlier.every), "learned": (learned.values(), P.values())}
    print(f"logits {tuple(logits.shape)}, z {tuple(z.shape)}, g {tuple(g.shape)}")
    print(f"L {loss.item():.4f} = L_CLIP {terms['l_clip']:.4f} + {W1} L_LC {terms['l_lc']:.4f} + "
          f"{W2} L_MI {terms['l_mi']:.4f}")
    for name, (fast, slow) in pairs.items():
        largest = max((a - b).abs().max().item() for a, b in zip(fast, slow, strict=True))
        print(f"largest difference, {name + ':':11} {largest:.0e}")


# The walk ----------------------------------------------------------------------------------------

def walk():
    """All stations in order -> [(station, what it printed)] and the values passed on, by name."""
    done = []

    def at(station, *given):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            values = station(*given)
        done.append((station, out.getvalue()))
        return values

    s = SimpleNamespace()
    clip, names, x, s.y = at(the_batch)
    learner, W, P = at(learned_and_frozen, clip, names)
    t, ends = at(text_prompts, learner, W, P)
    u, v = at(visual_prompts, W, P, x)
    s.g = at(text_features, W, t, ends, u)
    s.z = at(image_features, W, x, v, s.g, s.y)
    s.lam = at(equation_1, W, s.z, s.g, s.y, names)
    s.l_lc = at(equation_5, s.g)
    s.l_mi = at(equation_6, s.z, s.g, s.y)
    s.loss, s.terms = at(equation_7, s.z, s.g, s.y, s.lam)
    s.every = at(gradients, s.loss, s.terms, P)
    at(one_step, W, P, s.every)
    at(after_the_step, W, P, learner, x, s.y, s.lam, s)
    at(fast_form, clip, names, x, s.y, P, s)
    return done, s


def title(number, station):
    return f"{number}. {inspect.getdoc(station).splitlines()[0]}"


def code(station):
    """A station's lines between its docstring and its first print, without the indentation."""
    body = inspect.getsource(station).split('"""\n', 2)[-1]
    return textwrap.dedent(body.split("\n\n    ")[0]).strip("\n")


def page(done):
    """walk.md, whole."""
    parts = [HEAD]
    for number, (station, output) in enumerate(done, 1):
        sentences = inspect.getdoc(station).split("\n", 2)[2]
        parts.append(f"\n## {title(number, station)}\n\n{sentences}\n\n```python\n{code(station)}\n"
                     f"```\n\n```\n{output}```\n")
    return "".join(parts)


def main(argv=None):
    p = files.Parser(description="One step of MaPLe + NPT, station by station.")
    p.add_argument("--page", action="store_true", help="write walk.md instead of printing")

    def job():
        args = p.parse_args(argv)
        done, _ = walk()
        if args.page:
            files.write(PAGE, page(done))
            return
        for number, (station, output) in enumerate(done, 1):
            print(f"{title(number, station)}\n\n{textwrap.indent(output, '  ')}")

    return files.exit_code(job)


if __name__ == "__main__":
    sys.exit(main())
