"""Makes the modules of the top level importable, and small CLIPs filled from an integer hash.

The tests compare bytes, which a GPU's rounding breaks, and start processes, each of which would
open a GPU: they see none. Those marked NEEDS_CUDA run in a process of their own, see
tests/test_cuda.py.
"""
import math
import os
import sys
import warnings
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

import clip_model

OUTSIDE = dict(os.environ)
GPUS = torch.cuda.device_count()                        # asked for without opening one
ON_A_GPU = os.environ.get("TESTS_ON_A_GPU") == "1"
if not ON_A_GPU:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
NEEDS_CUDA = pytest.mark.skipif(not ON_A_GPU, reason="needs CUDA")
torch.set_num_threads(1)                                # as processes that tests start have it
os.environ["OMP_NUM_THREADS"] = "1"


def hash_uniform(shape, k):
    """Numbers in [-0.5, 0.5) from an integer hash of the flat index and the seed k, float64.

    Anyone can rebuild them.
    """
    x = torch.arange(1, math.prod(shape) + 1, dtype=torch.int64) * 0x9E3779B1 + (k + 1) * 0x85EBCA77
    x %= 2 ** 32
    x = (x ^ (x >> 15)) * 0x2C1B3C6D % 2 ** 32
    x = (x ^ (x >> 12)) * 0x297A2D39 % 2 ** 32
    return ((x ^ (x >> 15)).double() / 2 ** 32 - 0.5).reshape(shape)


def hash_tensor(name, shape, k):
    """The value of the tensor called `name`, float32."""
    u = hash_uniform(tuple(shape), k)
    if "logit_scale" in name:
        u = torch.full(tuple(shape), 4.6051702, dtype=torch.float64)
    elif name.endswith("weight") and any(part.startswith("ln_") for part in name.split(".")):
        u = 1 + 0.2 * u
    elif (name.endswith("bias") or "embedding" in name
          or name == "ctx" or "compound_prompts_text" in name):
        u = 0.2 * u
    else:
        fan_in = shape[0] if name.endswith(("proj", "text_projection")) else math.prod(shape[1:])
        u = 2 * math.sqrt(3 / fan_in) * u
    return u.float()


def hash_state(res=32, patch=16, vl=3, vw=128, tl=3, tw=64, embed=64, offset=0, **_):
    """The state dict of a CLIP of these sizes (names as in tests/golden), filled from the hash."""
    with torch.device("meta"):
        shapes = clip_model.CLIP(res, patch, vw, vl, tw, tl, 49408, embed).state_dict()
    return {name: hash_tensor(name, shapes[name].shape, offset + i)
            for i, name in enumerate(sorted(shapes))}


def fill_learned(learner, offset=0):
    """Fill a learner's trainable tensors from the hash, as the golden cases do."""
    import prompts
    learned = prompts.trainable(learner)
    for i, name in enumerate(sorted(learned)):
        value = hash_tensor(name, learned[name].shape, offset + 5000 + i)
        learned[name].data = value.to(learned[name].device)


@pytest.fixture(scope="session")
def small_clip():
    return clip_model.build(hash_state())


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def openai_archive(state, path):
    """Write a state dict as OpenAI publishes it: a TorchScript archive, float16.

    Three integers stand beside the weights.
    """
    class Names(torch.nn.Module):
        def forward(self, x: int):
            return x

    root = Names()
    numbers = {"input_resolution": 32, "context_length": 77, "vocab_size": 49408}
    for name, value in {**state, **{n: torch.tensor(v) for n, v in numbers.items()}}.items():
        *parents, leaf = name.split(".")
        module = root
        for part in parents:
            if part not in module._modules:
                module.add_module(part, Names())
            module = module._modules[part]
        module.register_buffer(leaf, value.half() if value.is_floating_point() else value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(root), str(path))


@pytest.fixture
def at(tmp_path, monkeypatch):
    """Run in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def archive(tmp_path_factory):
    """A small CLIP as OpenAI publishes its own."""
    path = tmp_path_factory.mktemp("weights") / "small.pt"
    openai_archive(hash_state(), path)
    return path
