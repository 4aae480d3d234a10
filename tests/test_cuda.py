"""What only a GPU shows; skipped elsewhere. The golden cases on one are in tests/test_golden.py."""
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import GPUS, NEEDS_CUDA, ON_A_GPU, OUTSIDE, fill_learned, hash_state, hash_uniform
from small_runs import done, eurosat, read
from test_runs import killed_at

import clip_model
import evaluate
import losses
import prompts
import train

NAMES = ["cat", "golden retriever", "sea lake", "river", "annual crop land"]
RUN = ["--method", "maple", "--npt", "--tau", "0.05", "--seed", "3", "--epochs", "3", "--shots",
       "4", "--device", "cuda"]


@pytest.mark.skipif(ON_A_GPU or not GPUS, reason="needs CUDA")
def test_those_that_need_a_gpu_pass_in_a_process_that_sees_it():
    files = [Path(__file__), Path(__file__).with_name("test_golden.py")]
    process = subprocess.run([sys.executable, "-m", "pytest", "-q", "-k", "cuda", *files],
                             capture_output=True, text=True,
                             env={**OUTSIDE, "TESTS_ON_A_GPU": "1"})
    print(process.stdout)
    assert process.returncode == 0


def learner_of(method, dtype=torch.float32, **options):
    clip = clip_model.build(hash_state()).to("cuda", dtype)
    learner = prompts.build(method, clip, NAMES, **options)
    fill_learned(learner)
    return learner


def objective_of(learner):
    """Eq. (7) as train.py has it, with everything switched on."""
    settings = Namespace(w1=0.3, w2=0.8, reduction="mean", class_counts=[5, 4, 3, 2, 1],
                         logit_adjust=True, balanced_mi=True)
    return train.Objective(learner, settings)


def trained(learner, objective, steps=20):
    """Losses, last gradients and learned tensors of SGD, four batches in turn."""
    images = hash_uniform((4, 3, 3, 32, 32), 9).float().cuda() * 4
    y = torch.arange(12, device="cuda").view(4, 3) % len(NAMES)
    learned, found = prompts.trainable(learner), []
    optimizer = torch.optim.SGD(learned.values(), lr=0.01, momentum=0.9)
    for n in range(steps):
        loss, terms = objective(images[n % 4], y[n % 4])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found += [loss.item(), *(float(term) for term in terms.values())]
    return found, [p.grad.clone() for p in learned.values()], [*learned.values()]


@NEEDS_CUDA
@pytest.mark.parametrize("crowded", [8192, 1])                  # 1: activations are recomputed
@pytest.mark.parametrize("method, options", [
    ("coop", {}), ("coop", {"class_specific": True, "n_ctx": 2}), ("cocoop", {}), ("maple", {}),
    ("maple", {"prompt_depth": 1})])
def test_graphed_steps_equal_plain_ones(method, options, crowded, monkeypatch):
    monkeypatch.setattr(prompts, "CROWDED", crowded)
    plain, other = (learner_of(method, **options) for _ in range(2))
    expected = trained(plain, objective_of(plain))
    graphed = train.graphed(objective_of(other), 3)
    found = trained(other, graphed)
    assert "forward" in vars(graphed) and "forward" not in vars(other)  # the learner stays whole
    assert len(set(expected[0])) == 80
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(found[2], expected[2], rtol=1e-4, atol=1e-6)


def test_a_graph_that_cannot_be_made_is_said_once(small_clip, monkeypatch, capsys):
    """On any machine: the first tensor on the GPU is refused, for lack of one or of its memory."""
    def refused(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    objective = objective_of(prompts.build("coop", small_clip, NAMES))
    assert train.graphed(objective, 3) is objective and capsys.readouterr().out == ""    # a CPU
    on_cuda = SimpleNamespace(device=torch.device("cuda"))
    clip = SimpleNamespace(logit_scale=on_cuda, visual=small_clip.visual)
    objective = SimpleNamespace(learner=SimpleNamespace(clip=clip))
    monkeypatch.setattr(torch, "zeros", refused)
    assert train.graphed(objective, 3) is objective
    assert capsys.readouterr().out.count("without a CUDA graph, slower: CUDA out of memory") == 1


@NEEDS_CUDA
@pytest.mark.parametrize("method", ["coop", "cocoop", "maple"])
def test_float16_is_nearer_to_float32_than_bfloat16(method):
    images = hash_uniform((3, 3, 32, 32), 9).float().cuda() * 4
    y, away = torch.arange(3, device="cuda"), {}
    exact = None
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        learner = learner_of(method, dtype)
        logits, z, g = learner(images)
        losses.npt_loss(logits, z, g, y)[0].backward()
        grads = torch.cat([p.grad.flatten() for p in prompts.trainable(learner).values()])
        assert {x.dtype for x in (logits, z, g, grads)} == {torch.float32}
        found = [z, g, grads / grads.norm()]
        exact = exact or found
        away[dtype] = torch.stack([(a - b).abs().max() for a, b in zip(found, exact, strict=True)])
    assert (away[torch.float16] < away[torch.bfloat16]).all()
    assert (away[torch.float16][:2] < 2e-3).all() and away[torch.float16][2] < 0.02


@NEEDS_CUDA
def test_two_runs_of_a_seed_and_a_killed_one_agree(at):
    """To rounding: on a GPU sums come in any order."""
    done(*RUN, "--out", "one")
    done(*RUN, "--out", "two")
    killed_at(8, [*RUN, "--out", "killed"])
    done(*RUN, "--out", "killed")
    one = read("one/log.csv")
    for name in ("two", "killed"):
        other = read(f"{name}/log.csv")
        assert len(other) == len(one) > 10
        for row, same in zip(other, one, strict=True):
            for column in ("loss", "l_clip", "l_lc", "l_mi"):
                assert float(row[column]) == pytest.approx(float(same[column]), rel=1e-3, abs=1e-5)


@NEEDS_CUDA
def test_a_run_on_a_gpu_is_evaluated_on_both_devices(at):
    done(*RUN, "--out", "run")
    told = train.read_result(at / "run" / "result.json")
    assert told["precision"] == "float16"
    for device in ("cuda", "cpu"):
        learner, settings = evaluate.load_run(at / "run", device, torch.float32)
        dataset = evaluate.load_dataset(at / "run", settings, None)
        base = evaluate.parts_of(dataset)["base"]
        frozen = evaluate.FrozenFeatures(dataset)
        accuracy = evaluate.score(learner, dataset, base, frozen)[0]["accuracy"]
        assert accuracy == pytest.approx(told["base"], abs=1.0)


@NEEDS_CUDA
def test_pictures_reach_a_gpu_by_workers(at, archive):
    eurosat(at, split=True)
    words = ["--dataset", "eurosat", "--data-root", at, "--backbone", archive, "--device", "cuda"]
    out = done("--method", "coop", "--npt", "--epochs", 2, "--out", "run", *words)
    assert "float16 on cuda" in out and (at / "run" / "result.json").is_file()
