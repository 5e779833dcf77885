"""A stage on a GPU: what comes may lie on the CPU or there, what leaves lies there."""

from __future__ import annotations

import pytest
import torch

from distqat.ids import MicrobatchId
from distqat.model.build import build_stage
from distqat.model.terms import Terms
from distqat.sections import PipelineSection, Precision
from tests.model import helpers

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here")


@pytest.mark.parametrize("recompute", [[], ["*"]])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("model", helpers.MODELS)
def test_a_pipeline_half_on_a_gpu(model: str, precision: Precision, recompute: list[str]) -> None:
    shape, gpu = helpers.MODELS[model][0], torch.device("cuda", 0)
    run = helpers.config(model, 2, precision=precision, clip_norm=1.0)
    run = run.model_copy(update={"pipeline": PipelineSection(recompute=recompute)})
    task = helpers.CrossEntropy()
    on_gpu = [build_stage(run, shape, index, task, gpu) for index in range(2)]
    on_cpu = helpers.chain(run, shape)
    for first, last in (on_gpu, on_cpu):
        inputs, labels = helpers.batch(shape, 1, 8)
        last.loss_scale = 64.0
        for index in range(2):
            own = slice(4 * index, 4 * index + 4)
            output = first.forward(MicrobatchId(1, index), inputs[own])
            assert output.device == first.device
            assert not output.requires_grad
            arrived = output.cpu() if index else output
            gradient = last.loss(MicrobatchId(1, index), arrived, {"labels": labels[own]}, 8).gradient
            assert gradient is not None
            assert gradient.device == last.device
            first.backward(MicrobatchId(1, index), gradient.cpu() if index else gradient)
        assert all(square > 0 for square in first.square_norms(1) + last.square_norms(1))
        for stage in (first, last):
            stage.commit(1, Terms(factor=1 / 64))
            assert {tensor.device for tensor in stage.optimizer.state().values()} == {stage.device}
    for left, right in zip(on_gpu, on_cpu, strict=True):
        assert left.flatten().device.type == "cpu"
        torch.testing.assert_close(left.flatten(), right.flatten(), rtol=0.05, atol=6e-3)


def test_fragments_of_a_stage_on_a_gpu() -> None:
    run = helpers.config("resnet")
    run = run.model_copy(update={"sync": run.sync.model_copy(update={"fragments": 3})})
    task, gpu = helpers.CrossEntropy(), torch.device("cuda", 0)
    on_gpu = build_stage(run, helpers.IMAGES, 0, task, gpu)
    on_cpu = build_stage(run, helpers.IMAGES, 0, task)
    for fragments in ([0], [2, 1], [0, 1, 2]):
        vector = on_gpu.gather(fragments)
        assert vector.device.type == "cpu"
        assert vector.equal(on_cpu.gather(fragments))
        on_gpu.scatter(fragments, vector * 2)
        on_cpu.scatter(fragments, vector * 2)
        assert on_gpu.flatten().equal(on_cpu.flatten())
