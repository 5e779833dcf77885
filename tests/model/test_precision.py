"""bf16 and fp16: cuts change no bit, plain torch agrees, and an overflow ends as a skipped step."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from distqat.errors import TensorError
from distqat.ids import MicrobatchId
from distqat.model import rng, zoo
from distqat.model.agreement import GROWTH_STEPS, LossScale
from distqat.model.precision import Overflow, autocast, compute_type
from distqat.model.shapes import DataShape
from distqat.model.stage import CPU, Stage
from distqat.model.terms import Terms
from distqat.model.zoo.blocks import build
from distqat.sections import Precision
from tests.model import helpers
from tests.model.test_cut import assert_same

LOW: list[Precision] = ["bf16", "fp16"]
STEPS = 6
TOO_LARGE = LossScale(2.0**20)
"""Some steps overflow before it has come down."""

INPUTS, LABELS = helpers.batch(helpers.IMAGES, 1, 4)
FIRST = MicrobatchId(1, 0)


def scale_of(precision: Precision) -> LossScale:
    return TOO_LARGE if precision == "fp16" else LossScale()


@pytest.mark.parametrize("precision", LOW)
@pytest.mark.parametrize("model", helpers.MODELS)
def test_every_cut_trains_the_same_numbers(model: str, precision: Precision) -> None:
    shape = helpers.MODELS[model][0]
    ends = []
    for number in (1, 2, 3):
        chain = helpers.stages(model, number, precision=precision, clip_norm=1.0)
        drive = helpers.Drive(chain, scale_of(precision))
        losses = [drive.step(step, *helpers.batch(shape, step)) for step in range(1, STEPS + 1)]
        ends.append((losses, drive.factors, helpers.tensors(chain)))
    for losses, factors, tensors in ends[1:]:
        assert losses == ends[0][0]
        assert factors == ends[0][1]
        assert_same(tensors, ends[0][2])
    assert (0.0 in ends[0][1]) == (precision == "fp16")
    assert ends[0][1][-1] > 0.0


def plain(
    model: str, precision: Precision, scale: LossScale, rounded: bool
) -> tuple[list[float], dict[str, Tensor], list[float]]:
    """The same network trained by torch alone: losses, tensors, scales; `rounded` between the blocks too, as ours."""
    shape, run = helpers.MODELS[model][0], helpers.config(model)
    specs = zoo.plan(run.model, shape).blocks
    whole = nn.Sequential(*(build(spec, run.run.seed, model, number) for number, spec in enumerate(specs)))
    optimizer = torch.optim.AdamW(whole.parameters(), 2e-3, weight_decay=0.01, fused=True)
    is_scaled = precision == "fp16"
    scaler = torch.amp.GradScaler("cpu", scale.value, growth_interval=GROWTH_STEPS, enabled=is_scaled)
    losses, scales = [], []
    for step in range(1, STEPS + 1):
        inputs, labels = helpers.batch(shape, step)
        total = 0.0
        scales.append(scaler.get_scale())
        for index, (hidden, target) in enumerate(helpers.microbatches(inputs, labels)):
            with torch.autocast("cpu", compute_type(precision)):
                for number, block in enumerate(whole):
                    rng.seed_dropouts(rng.dropouts(block), run.run.seed, "dropout", step, index, number)
                    hidden = block(hidden)
                    hidden = hidden.to(compute_type(precision)) if rounded else hidden
            loss, sums = helpers.CrossEntropy().loss(hidden.float(), {"labels": target})
            torch.autograd.backward(scaler.scale(loss / len(inputs)))
            total += sums["loss"]
        losses.append(total / len(inputs))
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    named = {f"blocks.{name}": tensor.detach() for name, tensor in (*whole.named_parameters(), *whole.named_buffers())}
    return losses, named, scales


@pytest.mark.parametrize("precision", LOW)
@pytest.mark.parametrize("model", helpers.MODELS)
def test_torchs_autocast_and_scaler_agree(model: str, precision: Precision) -> None:
    """Bit for bit where torch rounds between the blocks as we do, nearly where it does not."""
    chain = helpers.stages(model, 2, precision=precision)
    drive = helpers.Drive(chain, scale_of(precision))
    losses, scales = [], []
    for step in range(1, STEPS + 1):
        scales.append(drive.scale.value)
        losses.append(drive.step(step, *helpers.batch(helpers.MODELS[model][0], step)))
    expected, tensors, expected_scales = plain(model, precision, scale_of(precision), rounded=True)
    assert losses == expected
    assert scales == expected_scales
    assert_same(helpers.tensors(chain), tensors)
    free, _, _ = plain(model, precision, scale_of(precision), rounded=False)
    assert losses == pytest.approx(free, rel=0.02)


@pytest.mark.parametrize("precision", LOW)
def test_low_precision_follows_fp32(precision: Precision) -> None:
    for model, (shape, _) in helpers.MODELS.items():
        exact = helpers.train(helpers.stages(model, 1), shape, 8)
        low = helpers.train(helpers.stages(model, 1, precision=precision), shape, 8)
        assert low != exact
        assert low == pytest.approx(exact, rel=0.05)


@pytest.mark.parametrize("precision", ["fp32", *LOW])
@pytest.mark.parametrize("model", helpers.MODELS)
def test_what_travels_is_in_the_compute_type_and_what_is_kept_in_fp32(model: str, precision: Precision) -> None:
    shape, (first, last) = helpers.MODELS[model][0], helpers.stages(model, 2, precision=precision)
    inputs, labels = helpers.batch(shape, 1, 4)
    output = first.forward(FIRST, inputs)
    assert output.dtype == first.plan.outputs.dtype == last.plan.inputs.dtype == compute_type(precision)
    assert first.plan.inputs.dtype == inputs.dtype
    seen: list[torch.dtype] = []

    class Watching(helpers.CrossEntropy):
        def loss(self, output: Tensor, targets: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
            seen.append(output.dtype)
            return super().loss(output, targets)

    last.task = Watching()
    last.loss_scale = 64.0
    gradient = last.loss(FIRST, output, {"labels": labels}, 4).gradient
    assert seen == [torch.float32]
    assert gradient is not None
    assert gradient.dtype == compute_type(precision)
    assert first.backward(FIRST, gradient) is None
    for stage in (first, last):
        kept = [*stage.blocks.parameters(), *stage.blocks.buffers(), *stage.optimizer.state().values()]
        kept += [parameter.grad for parameter in stage.blocks.parameters() if parameter.grad is not None]
        assert {tensor.dtype for tensor in kept} == {torch.float32}


@pytest.mark.parametrize("precision", LOW)
@pytest.mark.parametrize(
    ("model", "shape", "options"),
    [
        ("mlp", helpers.IMAGES, {}),
        ("resnet", helpers.IMAGES, {}),
        ("resnet18", helpers.IMAGES, {"width": 4}),
        ("gpt", helpers.TOKENS, {"width": 16, "layers": 1}),
    ],
)
def test_every_block_of_the_zoo_runs_under_autocast(
    model: str, shape: DataShape, options: dict[str, int], precision: Precision
) -> None:
    run = helpers.config(model, options=options)
    hidden, _ = helpers.batch(shape, 0, 4)
    for number, spec in enumerate(zoo.plan(run.model, shape).blocks):
        block = build(spec, 7, model, number)
        exact = block(hidden if hidden.dtype == torch.int64 else hidden.float()).detach()
        with autocast(precision, CPU):
            output = block(hidden).to(compute_type(precision))
        torch.autograd.backward(output.float().square().mean())
        assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in block.parameters())
        hidden = output.detach()
        assert (hidden.float() - exact).norm() / exact.norm() < (0.02 if precision == "bf16" else 0.002)


@pytest.mark.parametrize("precision", LOW)
def test_norms_and_softmax_round_once_at_their_end(precision: Precision) -> None:
    """Autocast's lists leave them to their kernels, and those compute in fp32 whatever comes in."""
    dtype = compute_type(precision)
    hidden = (torch.randn(4, 64, 8, generator=torch.Generator().manual_seed(1)) * 30).to(dtype)
    batch_norm = nn.BatchNorm1d(64)
    layer_norm = nn.LayerNorm(8)
    for function in (layer_norm, batch_norm, lambda own: torch.softmax(own, -1)):
        with autocast(precision, CPU):
            low = function(hidden)
        torch.testing.assert_close(low.float(), function(hidden.float()).to(dtype).float(), rtol=2e-3, atol=1e-5)
    with autocast(precision, CPU):
        assert nn.functional.cross_entropy(hidden[0], torch.zeros(64, dtype=torch.int64)).dtype == torch.float32


# Overflows.


def pair(precision: Precision = "fp16", model: str = "resnet") -> tuple[Stage, Stage]:
    first, last = helpers.stages(model, 2, precision=precision)
    return first, last


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_a_gradient_that_overflowed_is_a_sign_in_fp16(bad: float) -> None:
    middle = helpers.stages("resnet", 3, precision="fp16")[1]
    hidden = torch.ones((2, *middle.plan.inputs.shape), dtype=torch.float16)
    gradient = torch.ones_like(middle.forward(FIRST, hidden))
    gradient[0, 0, 0, 0] = bad
    above = middle.backward(FIRST, gradient)
    assert above is not None
    assert bool(torch.isfinite(above).all())
    assert math.inf in middle.square_norms(1)
    before = middle.flatten()[: middle.num_parameters]
    assert middle.commit(1, Terms(factor=0.0))
    assert torch.equal(middle.flatten()[: middle.num_parameters], before)
    # The next step begins without it.
    middle.backward(MicrobatchId(2, 0), torch.ones_like(middle.forward(MicrobatchId(2, 0), hidden)))
    assert all(math.isfinite(square) for square in middle.square_norms(2))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_and_a_fault_in_other_precisions(precision: Precision) -> None:
    first, _ = pair(precision)
    output = first.forward(FIRST, INPUTS)
    with pytest.raises(TensorError, match="NaN or infinite"):
        first.backward(FIRST, output * math.inf)


def test_a_loss_scaled_too_far_skips_the_step_in_every_stage_and_breaks_nothing() -> None:
    chain = helpers.stages("gpt", 3, precision="fp16")
    drive = helpers.Drive(chain, LossScale(2.0**40))
    before = helpers.tensors(chain)
    inputs, labels = helpers.batch(helpers.TOKENS, 1)
    drive.step(1, inputs, labels)
    assert drive.factors == [0.0]
    assert drive.scale == LossScale(2.0**39)
    assert [stage.version for stage in chain] == [1, 1, 1]
    assert_same(helpers.tensors(chain), before)
    assert all(not tensor.any() for stage in chain for tensor in stage.optimizer.state().values())


def test_every_gradient_that_leaves_a_stage_is_finite() -> None:
    first, last = pair(model="gpt")
    inputs, labels = helpers.batch(helpers.TOKENS, 1, 4)
    last.loss_scale = 2.0**40
    gradient = last.loss(FIRST, first.forward(FIRST, inputs), {"labels": labels}, 4).gradient
    assert gradient is not None
    assert bool(torch.isfinite(gradient).all())
    assert math.inf in last.square_norms(1)


def test_an_activation_that_overflowed_skips_the_step_too() -> None:
    first, last = pair(model="mlp")
    huge = torch.full((4, 1, 8, 8), 6e4)
    output = first.forward(FIRST, huge)
    assert output.dtype == torch.float16
    assert bool(torch.isfinite(output).all())
    gradient = last.loss(FIRST, output, {"labels": LABELS}, 4).gradient
    assert gradient is not None
    first.backward(FIRST, gradient)
    assert math.inf in first.square_norms(1)


def test_an_evaluation_that_overflows_marks_no_step() -> None:
    first, _ = pair(model="mlp")
    output = first.forward(FIRST, INPUTS)
    assert bool(torch.isfinite(first.forward(FIRST, torch.full((4, 1, 8, 8), 6e4), train=False)).all())
    first.backward(FIRST, torch.zeros_like(output))
    assert math.inf not in first.square_norms(1)


def test_a_dropped_step_forgets_its_overflow() -> None:
    first, _ = pair(model="mlp")
    first.forward(FIRST, torch.full((4, 1, 8, 8), 6e4))
    first.drop_pending()
    first.backward(FIRST, torch.zeros_like(first.forward(FIRST, INPUTS)))
    assert math.inf not in first.square_norms(1)


def test_running_statistics_of_a_skipped_step_stay_unless_they_are_broken() -> None:
    """As in one process, where the forwards are done before the scaler skips; but a NaN would stay for ever."""
    (stage,) = helpers.stages("resnet", 1, precision="fp16")
    norms = [module for module in stage.blocks.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [norm.running_mean.clone() for norm in norms if norm.running_mean is not None]
    stage.loss(FIRST, INPUTS, {"labels": LABELS}, 4)
    assert norms[1].running_mean is not None
    norms[1].running_mean[0] = math.nan
    stage.commit(1, Terms(factor=0.0))
    after = [norm.running_mean for norm in norms if norm.running_mean is not None]
    assert torch.equal(after[1], before[1])
    assert not torch.equal(after[0], before[0])


def test_overflow_notes_blocks_and_gives_zeros() -> None:
    overflow = Overflow(3, CPU)
    fine = torch.full((1000,), 6e4, dtype=torch.float16)
    assert torch.equal(overflow.note(0, fine), fine)
    assert overflow.note(2, torch.tensor([1.0, math.inf, -math.inf, math.nan])).tolist() == [1.0, 0.0, 0.0, 0.0]
    assert repr(overflow) == "<Overflow [2]>"
    overflow.clear()
    assert overflow.blocks() == []
