"""What an expert does for one open route: read from above, compute in the schedule's order, pass down, answer up.

A few small tasks: one reader and one writer to each side, one that beats, and the one that computes. Decoding happens
in the readers and encoding in the writers, so both go on while the device computes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Protocol

import torch

from distqat.aio import Mailbox
from distqat.errors import MessageError
from distqat.ids import MicrobatchId
from distqat.model.device import Device, Priority
from distqat.model.stage import Stage
from distqat.pipeline.below import Below
from distqat.pipeline.hop import Hop, pack, unpack
from distqat.pipeline.messages import (
    Busy,
    Commit,
    Committed,
    Gradient,
    Message,
    Microbatch,
    Open,
    Outcome,
    Settle,
    Settled,
)
from distqat.pipeline.route import Limits
from distqat.pipeline.schedule import Agree, Apply, Backward, Forward, Schedule, Statistics, Work, credits
from distqat.pipeline.standing import Standing, StepSize

INPUTS = "inputs"
HIDDEN = "hidden"
GRADIENT = "gradient"

Parcel = tuple[Message, Mapping[str, torch.Tensor]]
"""A message and the tensors that it will carry."""


class Host(Protocol):
    """The expert in whose name a stage works."""

    stage: Stage
    device: Device

    async def opened(self, opening: Open) -> None:
        """A route wants this stage. May refuse: RefusedError, StaleError, WrongRunError."""
        ...

    async def begin(self, train: bool) -> None:
        """The first forward of a step, or of an evaluation, comes next. Waits while an outer round is under way that
        followed from no commit here; from a training forward on none may begin, until `committed` or `closed`."""
        ...

    async def committed(self, step: int, samples: int) -> None:
        """The optimizer has applied a step. Called once for each, in order, and counts it before it first waits; runs
        an outer round if one is due, and the stage does nothing else meanwhile. A cancelled round stays due."""
        ...

    async def settle(self) -> None:
        """Run an outer round now."""
        ...

    def progressed(self) -> None:
        """Work was delivered: the lease is renewed."""
        ...

    async def closed(self, reason: str) -> None:
        """The route is gone."""
        ...


class Worker:
    """One stage on one open route."""

    def __init__(self, host: Host, standing: Standing, above: Hop, below: Below | None, limits: Limits) -> None:
        stage = host.stage
        room = 2 * credits(stage.num_stages, stage.index) + 4
        self._host = host
        self._stage = stage
        self._standing = standing
        self._above = above
        self._below = below  # None in the last stage.
        self._limits = limits
        self._schedule = Schedule(stage.num_stages, stage.index, stage.version)
        self._up: Mailbox[Parcel | None] = Mailbox(f"answers of {stage.name}", room)  # None: no more will come.
        self._down: Mailbox[Parcel | None] = Mailbox(f"outputs of {stage.name}", room)
        self._inputs: dict[Forward, tuple[Microbatch, dict[str, torch.Tensor]]] = {}  # Arrived, not begun.
        self._gradients: dict[MicrobatchId, torch.Tensor] = {}  # Arrived, not begun.
        self._busy_since: float | None = None  # When the present piece of work began; None while there is none.
        self._arrived = asyncio.Event()  # Set whenever there may be something to compute.
        self._closing = False  # The trainer has finished: do what is ordered, then end.
        self._asked = 0  # Serial of the last request to settle that was passed on.
        self._agreed = {"here": 0, "below": 0}  # Serials of the last request to settle that was done.

    def __repr__(self) -> str:
        return f"<Worker {self._stage.name} {self._schedule}>"

    def statistics(self) -> Statistics:
        """How things stand."""
        return self._schedule.statistics()

    async def run(self) -> None:
        """Work until the trainer closes the route. Raises HopError or what happened here, as a group."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._read_above())
            group.create_task(self._write(self._up, self._above, self._limits.gradients))
            beats = group.create_task(self._beat())
            if self._below is None:
                await self._compute()
            else:
                writer = group.create_task(self._write(self._down, self._below, self._limits.activations))
                reader = group.create_task(self._read_below(self._below))
                watch = group.create_task(self._below.wait_dead())
                await self._compute()
                await self._close_below(self._below, writer, reader)
                watch.cancel()
            beats.cancel()
            await self._up.put(None)

    # Above.

    async def _read_above(self) -> None:
        while (received := await self._above.receive()) is not None:
            message, payload = received
            match message:
                case Microbatch():
                    await self._take(message, payload)
                case Commit(step, samples):
                    if samples != self._standing.samples(step):
                        raise MessageError(f"a commit of step {step} with {samples} samples, which is not its size")
                    self._schedule.commit_arrived(step)
                case Settle(serial):
                    self._schedule.settle_arrived(serial)
            self._arrived.set()
        self._closing = True
        self._schedule.drop_forwards()
        self._arrived.set()

    async def _take(self, message: Microbatch, payload: memoryview) -> None:
        named = await unpack(message.tensors, payload)
        if self._input_name not in named:
            raise MessageError(f"a microbatch without '{self._input_name}' for {self._stage.name}")
        if message.train:
            self._standing.note_size(message.step, StepSize(message.count, message.batch_samples))
        self._schedule.forward_arrived(message.id, message.count, message.train)
        self._inputs[Forward(message.id, message.train)] = (message, named)

    @property
    def _input_name(self) -> str:
        return INPUTS if self._stage.index == 0 else HIDDEN

    # Below.

    async def _read_below(self, below: Below) -> None:
        while (received := await below.receive()) is not None:
            try:
                await self._answered(below, *received)
            except MessageError as error:
                raise below.blame(error) from None
        if not self._closing:
            raise below.blame("UnreachableError", "ended the stream")

    async def _answered(self, below: Below, message: Message, payload: memoryview) -> None:
        match message:
            case Gradient():
                named = await unpack(message.tensors, payload)
                if GRADIENT not in named:
                    raise MessageError("a gradient without a tensor")
                self._schedule.backward_arrived(message.id)
                self._gradients[message.id] = named[GRADIENT]
                below.watch.paid()
            case Outcome(_, _, train):
                if not train:
                    self._schedule.outcome_arrived(message.id)
                    below.watch.paid()
                await self._up.put((message, {}))
            case Busy():
                await self._up.put((message, {}))
            case Settled(serial):
                if serial != self._asked or serial == self._agreed["below"]:
                    raise MessageError(f"an answer to request {serial} to settle, which does not wait for one")
                below.watch.paid()
                await self._agree_on(serial, "below")
            case _:
                raise MessageError(f"a {type(message).__name__} from a stage that is not the first")
        self._arrived.set()

    async def _close_below(self, below: Below, writer: asyncio.Task[None], reader: asyncio.Task[None]) -> None:
        try:
            async with asyncio.timeout(self._limits.open):
                await self._down.put(None)
                await asyncio.wait({writer})
                await below.finish()
                await asyncio.wait({reader})
        except TimeoutError:
            raise below.blame("DeadlineError", f"did not close within {self._limits.open:.1f} s") from None

    async def _write(self, parcels: Mailbox[Parcel | None], side: Hop | Below, codec: str) -> None:
        """Encode and send what is put into a mailbox, in its order, until None."""
        while (parcel := await parcels.get()) is not None:
            message, named = parcel
            headers, payload = await pack(named, codec)
            if isinstance(message, Microbatch | Gradient) and headers:
                message = replace(message, tensors=headers)
            await side.send(message, payload)

    # The device.

    async def _compute(self) -> None:
        with self._at_work():
            await self._report()
        while True:
            work = self._schedule.next()
            if work is not None:
                with self._at_work():
                    await self._do(work)
                self._host.progressed()
            elif self._closing:
                return
            else:
                self._arrived.clear()
                await self._arrived.wait()

    async def _do(self, work: Work) -> None:
        match work:
            case Forward(id, train):
                if id.index == 0:
                    await self._host.begin(train)
                await (self._loss(work) if self._below is None else self._forward(work, self._below))
            case Backward():
                await self._backward(work)
            case Apply(step):
                await self._apply(work, step)
            case Agree(serial):
                await self._settle(work, serial)

    async def _forward(self, work: Forward, below: Below) -> None:
        message, named = self._inputs.pop(work)
        hidden = named.pop(self._input_name)
        output = await self._host.device.run(
            partial(self._stage.forward, work.id, hidden, work.train), Priority.FORWARD
        )
        self._schedule.done(work)
        below.watch.owe()
        await self._down.put((message, {HIDDEN: output, **named}))

    async def _loss(self, work: Forward) -> None:
        message, named = self._inputs.pop(work)
        hidden = named.pop(self._input_name)
        result = await self._host.device.run(
            partial(self._stage.loss, work.id, hidden, named, message.batch_samples, work.train), Priority.BACKWARD
        )
        self._schedule.done(work)
        await self._up.put((Outcome(message.step, message.index, work.train, result.sums), {}))
        if work.train:
            await self._send_gradient(work.id, result.gradient)

    async def _backward(self, work: Backward) -> None:
        gradient = self._gradients.pop(work.id)
        result = await self._host.device.run(partial(self._stage.backward, work.id, gradient), Priority.BACKWARD)
        self._schedule.done(work)
        await self._send_gradient(work.id, result)

    async def _send_gradient(self, id: MicrobatchId, gradient: torch.Tensor | None) -> None:
        named = {} if gradient is None else {GRADIENT: gradient}
        await self._up.put((Gradient(id.step, id.index), named))

    async def _apply(self, work: Apply, step: int) -> None:
        samples = self._standing.samples(step)
        assert samples is not None
        await self._host.device.run(partial(self._standing.apply, self._stage, step), Priority.OTHER)
        if self._below is not None:
            await self._down.put((Commit(step, samples), {}))
        if self._stage.index == 0:
            await self._up.put((Committed(step), {}))
        await self._report()
        self._schedule.done(work)

    async def _report(self) -> None:
        """Tell the host of applied steps, also of one that was applied when a route broke or opened."""
        while self._standing.owed:
            step, samples = self._standing.owed.popleft()
            await self._host.committed(step, samples)

    async def _settle(self, work: Agree, serial: int) -> None:
        if self._below is not None:
            self._asked = serial
            self._below.watch.owe()
            await self._down.put((Settle(serial), {}))
        await self._host.settle()
        self._schedule.done(work)
        await self._agree_on(serial, "here")

    async def _agree_on(self, serial: int, where: str) -> None:
        """This stage, or all below it, have settled; when both have, say so."""
        self._agreed[where] = serial
        if self._below is None or self._agreed["here"] == self._agreed["below"]:
            await self._up.put((Settled(serial), {}))

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """Within, one piece of work is done: a microbatch on the device, a commit, an outer round."""
        self._busy_since = asyncio.get_running_loop().time()
        try:
            yield
        finally:
            self._busy_since = None

    async def _beat(self) -> None:
        """Let those above know that a long piece of work is no dead silence; but not for ever."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._limits.stall / 3)
            if self._busy_since is not None and loop.time() - self._busy_since < self._limits.settle:
                await self._up.put((Busy(self._stage.index), {}))
