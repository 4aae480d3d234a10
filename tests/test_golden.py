"""The project against the original implementations of CLIP's tokenizer, CoOp, CoCoOp and MaPLe.

tests/golden/*.json hold what those compute in float32 on a CPU, from weights and images that an
integer hash makes (conftest.hash_tensor). No line of the originals is needed to check against them.
"""
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import NEEDS_CUDA, fill_learned, hash_state, hash_uniform

import clip_model
import prompts

GOLDEN = Path(__file__).parent / "golden"


def test_tokenizer_gives_the_ids_of_clips_own():
    tokenizer = clip_model.Tokenizer()
    for case in json.loads((GOLDEN / "tokenizer.json").read_text()):
        assert tokenizer.encode(case["text"]) == case["ids"], case["text"]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NEEDS_CUDA)])
@pytest.mark.parametrize("file", ["coop_small.json", "cocoop_small.json", "maple_small.json"])
def test_learner_equals_the_original(file, device):
    case = json.loads((GOLDEN / file).read_text())
    arch, offset = case["arch"], case["offset"]
    clip = clip_model.build(hash_state(offset=offset, **arch)).to(device)
    learner = prompts.build(case["method"], clip, case["classnames"],
                            n_ctx=case["n_ctx"], ctx_init=case["ctx_init"],
                            prompt_depth=case["prompt_depth"],
                            class_specific=case["class_specific"])
    learned = prompts.trainable(learner)
    assert {name: list(p.shape) for name, p in learned.items()} == case["trainable"]
    b = case["n_ctx"]
    for name, ids in zip(case["classnames"], case["token_ids"], strict=True):   # an id at each u_j
        assert learner.token_ids(0, name) == [ids[0], *range(-1, -1 - b, -1), *ids[1 + b:]]
    fill_learned(learner, offset)
    images = (4 * hash_uniform((case["batch"], 3, arch["res"], arch["res"]), offset + 9000)).float()
    images, labels = images.to(device), torch.tensor(case["labels"], device=device)

    logits, z, g = learner(images)
    torch.testing.assert_close(z.cpu(), torch.tensor(case["image_features"]), atol=1e-5, rtol=0)
    text_features = torch.tensor(case["text_features"])
    torch.testing.assert_close(g.flatten(0, -2).cpu(), text_features, atol=1e-5, rtol=0)
    torch.testing.assert_close(logits.cpu(), torch.tensor(case["logits"]), atol=1e-3, rtol=0)

    loss = F.cross_entropy(logits, labels)
    assert loss.item() == pytest.approx(case["loss"], abs=1e-3)
    loss.backward()
    for name, golden in case["grads"].items():
        grad = learned[name].grad
        assert grad.norm().item() == pytest.approx(golden["norm"], rel=2e-3), name
        head = torch.tensor(golden["head"])
        atol = 2e-3 * head.abs().max().item()
        torch.testing.assert_close(grad.flatten()[:16].cpu(), head, atol=atol, rtol=0)

    sgd = case["after_sgd"]
    optimizer = torch.optim.SGD(learned.values(), lr=sgd["lr"], momentum=sgd["momentum"],
                                weight_decay=sgd["weight_decay"])
    for _ in range(sgd["steps"]):
        optimizer.zero_grad()
        F.cross_entropy(learner(images)[0], labels).backward()
        optimizer.step()
    logits = learner(images)[0].cpu()
    torch.testing.assert_close(logits, torch.tensor(sgd["logits"]), atol=2e-2, rtol=0)
