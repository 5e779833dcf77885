"""What only wav2vec 2.0 has: padding, SpecAugment, layers left out, and checkpoints from before the fine-tuning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from distqat.errors import ModelError, TensorError
from distqat.ids import MicrobatchId
from distqat.model import zoo
from distqat.model.build import build_stage
from distqat.model.shapes import DataShape
from distqat.model.stage import Stage
from distqat.model.zoo import weights
from distqat.model.zoo.blocks import build
from distqat.sections import ModelSection
from tests.model.test_cut import assert_same
from tests.model.zoo import oracle

DROPOUTS = ("hidden_dropout", "attention_dropout", "activation_dropout", "final_dropout", "feat_proj_dropout")
PLAIN, MASKED = oracle.FAMILIES["wav2vec2"], oracle.FAMILIES["wav2vec2-masked"]


def stage(family: oracle.Family, where: str = "", options: dict[str, Any] | None = None) -> Stage:
    """The uncut model; `options` besides the family's own."""
    run = oracle.run(family, 1, where, {**({} if where else family.options), **(options or {})})
    return build_stage(run, family.shape, 0, family.task)


def evaluate(whole: Stage, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return whole._slice.run(whole._slice.enter(inputs), None)


def outputs(whole: Stage, inputs: Tensor, step: int) -> Tensor:
    """In training."""
    with torch.no_grad():
        return whole._slice.run(whole._slice.enter(inputs), MicrobatchId(step, 0))


@pytest.mark.parametrize(("name", "parameters"), [("wav2vec2", 94_396_320), ("wav2vec2-large-lv60", 315_471_520)])
def test_the_named_models_have_their_published_sizes(name: str, parameters: int) -> None:
    plan = zoo.plan(ModelSection(name=name, stages=1), DataShape("audio", (16000,), 32))
    with torch.device("meta"):
        blocks = nn.ModuleList(spec.make() for spec in plan.blocks)
    assert sum(parameter.numel() for parameter in blocks.parameters()) == parameters
    # A second of sound is 49 frames.
    assert plan.blocks[-1].output.shape == (49, 32)


@pytest.mark.parametrize("family", [PLAIN, MASKED], ids=["plain", "masked"])
def test_each_block_gives_what_its_plan_says_and_sane_numbers(family: oracle.Family) -> None:
    run = oracle.run(family, 1)
    hidden, _ = oracle.batch(family.shape, 1)
    for index, spec in enumerate(zoo.plan(run.model, family.shape).blocks):
        block = build(spec, 7, family.name, index)
        hidden = block(hidden)
        assert tuple(hidden.shape[1:]) == spec.output.shape
        assert bool(torch.isfinite(hidden).all())
        if spec.name == "positions":
            norm = block.get_parameter("pos_conv_embed.conv.parametrizations.weight.original0")
            assert float(norm.detach().min()) > 0


def test_what_is_padding_changes_nothing_of_what_is_sound() -> None:
    whole = stage(MASKED)
    inputs, _ = oracle.batch(MASKED.shape, 1)
    padded = evaluate(whole, inputs)[::2]
    # 400 samples are 19 frames, of 29.
    assert not bool(padded[:, 19:, 0].any())
    assert bool((padded[:, 19:, 1:] < -9000).all())
    run = oracle.run(MASKED, 1)
    short = build_stage(run, DataShape("audio", (400,), 12), 0, MASKED.task)
    torch.testing.assert_close(padded[:, :19], evaluate(short, inputs[::2, :400]), rtol=1e-4, atol=1e-5)


def test_the_loss_is_that_of_the_lengths() -> None:
    """Blank wherever there is nothing makes the loss over all frames that over the frames of sound."""
    whole = stage(MASKED)
    inputs, labels = oracle.batch(MASKED.shape, 1)
    scores = evaluate(whole, inputs).requires_grad_()
    lengths = torch.tensor([19, 29] * 8)
    logs = F.log_softmax(scores, -1).transpose(0, 1)
    expected = F.ctc_loss(logs, labels.clamp(min=0), lengths, (labels >= 0).sum(1), reduction="none").sum()
    (by_lengths,) = torch.autograd.grad(expected, scores)
    total, _ = oracle.Ctc().loss(scores, {"labels": labels})
    (by_blanks,) = torch.autograd.grad(total, scores)
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(by_blanks, by_lengths, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {"mask_feature_prob": 0.0, "layerdrop": 0.0},
        {"mask_time_prob": 0.0, "layerdrop": 0.0},
        {"mask_time_prob": 0.0, "mask_feature_prob": 0.0},
    ],
    ids=["time", "features", "layers"],
)
def test_what_is_drawn_depends_on_the_step_alone(changes: dict[str, float]) -> None:
    quiet = {**dict.fromkeys(DROPOUTS, 0.0), **changes}
    inputs, _ = oracle.batch(PLAIN.shape, 1)
    drawn = [outputs(stage(PLAIN, options=quiet), inputs, step) for step in range(1, 7)]
    again = stage(PLAIN, options=quiet)
    assert all(torch.equal(outputs(again, inputs, step), drawn[step - 1]) for step in reversed(range(1, 7)))
    assert any(not torch.equal(drawn[0], other) for other in drawn[1:])


def test_without_any_of_it_training_computes_what_an_evaluation_does() -> None:
    names = ("mask_time_prob", "mask_feature_prob", "layerdrop")
    whole = stage(PLAIN, options=dict.fromkeys([*DROPOUTS, *names], 0.0))
    inputs, _ = oracle.batch(PLAIN.shape, 1)
    torch.testing.assert_close(outputs(whole, inputs, 1), evaluate(whole, inputs))


def test_a_checkpoint_from_before_the_fine_tuning_gets_a_fresh_head(tmp_path: Path) -> None:
    model = oracle.whole(PLAIN)
    where = oracle.save(model, tmp_path)
    path = tmp_path / weights.SINGLE
    # As the first releases wrote it: without a head, and the weight's norm under its old names.
    old = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    kept = {name: tensor for name, tensor in load_file(path).items() if not name.startswith("lm_head")}
    for new, before in old.items():
        name = f"wav2vec2.encoder.pos_conv_embed.conv.{new}"
        kept[name.replace(new, before)] = kept.pop(name)
    save_file(kept, path)
    run = oracle.run(PLAIN, 1, where, {})
    whole = stage(PLAIN, where)
    tensors = oracle.names(run, PLAIN.shape, dict(zip_names(whole)))
    expected = {name: parameter.detach() for name, parameter in model.named_parameters()}
    head = {name for name in tensors if name.startswith("lm_head")}
    assert_same(
        {n: t for n, t in tensors.items() if n not in head}, {n: expected[n] for n in expected if n not in head}
    )
    assert float(tensors["lm_head.weight"].std()) == pytest.approx(0.02, rel=0.2)


def zip_names(whole: Stage) -> list[tuple[str, Tensor]]:
    """Names of ours and parameters."""
    slots = [slot.name for slot in whole.layout if slot.is_parameter]
    return [(name, parameter.detach()) for name, parameter in zip(slots, whole.blocks.parameters(), strict=True)]


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        (oracle.TOKENS, {}, "takes audio, and the data are tokens"),
        (DataShape("audio", (399,), 12), {}, "399 samples of sound are 0 frames"),
        (oracle.SOUND, {"vocab_size": 11}, "12 classes in the data, 11 in the model"),
        (oracle.SOUND, {"add_adapter": True}, "add_adapter is not known"),
        (oracle.SOUND, {"hidden_size": 8, "num_attention_heads": 2}, "width below 16 is too narrow"),
    ],
)
def test_models_that_cannot_be_planned(shape: DataShape, options: dict[str, Any], message: str) -> None:
    section = ModelSection.model_validate({"name": "wav2vec2-large-lv60", "stages": 1, "options": options})
    with pytest.raises(ModelError, match=message):
        zoo.plan(section, shape)


def test_a_microbatch_that_is_too_short_to_mask_is_refused() -> None:
    whole = stage(PLAIN, options={"mask_time_length": 100})
    inputs, labels = oracle.batch(PLAIN.shape, 1)
    with pytest.raises(TensorError, match=r"cannot compute this microbatch: .*mask_length"):
        whole.loss(MicrobatchId(1, 0), inputs, {"labels": labels}, len(inputs))
