"""Image features: those of the frozen tower are made once, kept, and shared by runs.

On a CPU nearly all of a run's time goes into its test images. In a frozen image tower their
features depend on weights, preprocessing, precision and pictures alone.
"""
import contextlib
import hashlib
import io

import numpy  # torchvision depends on it
import PIL
import torch
import torchvision
from tqdm import tqdm

import data
from assets import files, weight_files


@torch.no_grad()
def image_features(learner, batches, show=None):
    """z (N, d) and y (N,) of a whole loader, on the learner's device."""
    device = learner.clip.logit_scale.device
    z, y = [], []
    for images, labels in tqdm(batches, desc=show, leave=False, disable=show is None):
        z.append(learner.image_features(images.to(device, non_blocking=True)))
        y.append(labels)
    return torch.cat(z), torch.cat(y).to(device)


class FrozenFeatures:
    """z of a dataset's test images in the frozen image tower, made once for all that share it.

    folder  where they are kept from run to run, under a name of all that they depend on: weights,
            preprocessing, precision, device, pictures. A file that is damaged or of other pictures
            is made anew.
    """

    def __init__(self, dataset, folder=None):
        self.dataset, self.folder, self.z = dataset, folder, None

    def of(self, learner, labels, show=None):
        """z (N, d) and y (N,) of the test images of some classes."""
        if self.z is None:
            self.z = self.kept(learner, show) if self.folder else self.made(learner, show)
        new = {label: k for k, label in enumerate(labels)}
        rows = [i for i, (_, label) in enumerate(self.dataset.test) if label in new]
        y = [new[self.dataset.test[i][1]] for i in rows]
        return self.z[rows], torch.tensor(y, device=self.z.device)

    def made(self, learner, show):
        clip = learner.clip
        batches = data.batches(self.dataset, self.dataset.test, clip.visual.resolution,
                               clip.logit_scale.device)
        return image_features(learner, batches, show)[0]

    def kept(self, learner, show):
        path = self.folder / f"{self.dataset.name}-{self.fingerprint(learner.clip)}.pt"
        z = None
        with contextlib.suppress(OSError), files.alone(path):    # on a read-only or full disk they
            z = self.read(path)                                 # are just made again next time
            if z is None:
                z = self.made(learner, show).cpu()
                content = {"z": z, "sha256": weight_files.checksum({"z": z})}
                files.write(path, weight_files.saved(content))
        z = self.made(learner, show) if z is None else z
        return z.to(learner.clip.logit_scale.device)

    def read(self, path):
        """The features in a file, None where there is none to trust."""
        try:
            saved = weight_files.read(path)
            z = saved["z"]
            right = len(z) == len(self.dataset.test) and z.isfinite().all()
            return z if right and weight_files.checksum({"z": z}) == saved["sha256"] else None
        except Exception:                           # absent, cut off, or something else altogether
            return None

    def fingerprint(self, clip):
        view = data.transform(clip.visual.resolution, train=False)
        words = [str(view), str(clip.logit_scale.device.type), torch.__version__,
                 torchvision.__version__, PIL.__version__, str(self.dataset.own),
                 weight_files.checksum(clip.visual.state_dict()),
                 *(f"{name} {self.state(name)}" for name, _ in self.dataset.test)]
        return hashlib.sha256("\n".join(words).encode()).hexdigest()[:16]

    def state(self, name):
        """What tells a picture from another of its name: its bytes, or a file's size and time."""
        if self.dataset.embedded:
            return hashlib.sha256(self.dataset.pictures[name].tobytes()).hexdigest()
        stat = self.dataset.path(name).stat()
        return f"{stat.st_size} {stat.st_mtime_ns}"


def export(path, scored, learner, settings, dataset, parts):
    """The features of a run as a .npz file for numpy: z (N, d), y (N,) and pictures (N,), g (K, d).

    scored  {part: z, y, g}; each part was scored on its own, its images against its texts
    parts   {part: labels}
    y counts through the K classes of all parts; classnames and part (K,) say what they are.
    """
    zs, ys, gs, K = [], [], [], 0
    for z, y, g in scored.values():
        zs, ys, gs = [*zs, z.cpu()], [*ys, y.cpu() + K], [*gs, g.cpu()]
        K += len(g)
    labels = [label for part in parts.values() for label in part]
    pictures = [picture for part in parts.values()
                for picture, _ in data.select(dataset.test, part)]
    content = io.BytesIO()
    numpy.savez(content, z=torch.cat(zs).numpy(), y=torch.cat(ys).numpy(), g=torch.cat(gs).numpy(),
                pictures=pictures, classnames=[dataset.classnames[k] for k in labels],
                part=[word for word, part in parts.items() for _ in part],
                method=settings["method"], backbone=settings["backbone"],
                temperature=float(learner.clip.temperature))
    files.write(path, content.getvalue())
    print(f"saved in {path}: {len(pictures)} images, {K} classes")


@torch.no_grad()
def export_texts(path, learner, settings):
    """The class texts of a run as a .npz file: g (K, d) float32, of length 1, and classnames (K,).

    A photo's probabilities are softmax(z @ g.T / temperature), z its image features of length 1.
    """
    if learner.per_image:
        raise ValueError("CoCoOp makes its class texts anew for each image: there are none to "
                         "write; use --image, or train coop")
    g, content = learner.text_features().float().cpu().numpy(), io.BytesIO()
    numpy.savez(content, g=g, classnames=learner.classnames, method=settings["method"],
                temperature=float(learner.clip.temperature), backbone=settings["backbone"],
                prompts=[learner.show_prompt(name) for name in learner.classnames])
    files.write(path, content.getvalue())
    tower = "classify with CLIP's own image features"
    if not learner.frozen_images:
        tower = ("MaPLe's image tower is tuned too, so with CLIP's own image features they do not "
                 "classify as this run does")
    print(f"saved in {path}: {len(g)} class texts; {tower}")
