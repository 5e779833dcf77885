"""What has come for a stage on its route and is not worked on yet: read from above and below, checked, decoded, kept.

Two tasks read, one to each side; the schedule says what of it is next. Decoding goes on while the device computes.
"""

from __future__ import annotations

import asyncio

import torch

from distqat.aio import Mailbox
from distqat.errors import MessageError
from distqat.ids import MicrobatchId
from distqat.pipeline.below import Below
from distqat.pipeline.freight import Freight, Named
from distqat.pipeline.hop import Hop
from distqat.pipeline.hop_codecs import GRADIENT, HIDDEN, INPUTS, TIED
from distqat.pipeline.host import Post
from distqat.pipeline.schedule import Forward, Schedule, Work
from distqat.pipeline.standing import StepSize
from distqat.pipeline.words import Busy, Commit, Gradient, Message, Microbatch, Outcome, Ping, Pong, Settle, Settled

Parcel = tuple[Message, Named]
"""A message and the tensors that it will carry."""


class Arrivals:
    """Of one stage on one open route. What only passes through goes into `up`, the answers to whoever stands above."""

    def __init__(self, post: Post, up: Mailbox[Parcel | None]) -> None:
        stage = post.stage
        self.schedule = Schedule(stage.num_stages, stage.index, stage.version, post.limits.max_in_flight)
        self._post = post
        self._up = up
        self._input_name = INPUTS if stage.index == 0 else HIDDEN
        self._inputs: dict[Forward, tuple[Microbatch, dict[str, torch.Tensor]]] = {}  # Arrived, not begun.
        self._gradients: dict[MicrobatchId, tuple[Gradient, dict[str, torch.Tensor]]] = {}  # Arrived, not begun.
        self._commits: dict[int, Commit] = {}  # Of steps; arrived, not begun.
        self._changed = asyncio.Event()  # Set whenever there may be something to do.
        self._is_lent = False  # Whether the tied tensor has come on this route.
        self._closing = False  # The trainer has finished: do what is ordered, then end.
        self._asked = 0  # Serial of the last request to settle that was passed on.
        self._agreed = {"here": 0, "below": 0}  # Serials of the last request to settle that was done.

    async def next(self) -> Work | None:
        """Wait for work and take it; None when the trainer has closed the route and all is done."""
        while True:
            self.schedule.allow(self._post.pace.bound)
            work = self.schedule.next()
            if work is not None or self._closing:
                return work
            self._changed.clear()
            await self._changed.wait()

    def microbatch(self, work: Forward) -> tuple[Microbatch, torch.Tensor, dict[str, torch.Tensor]]:
        """The message, the stage's input, and the targets."""
        message, named = self._inputs.pop(work)
        return message, named.pop(self._input_name), named

    def gradient(self, id: MicrobatchId) -> tuple[Gradient, torch.Tensor, torch.Tensor | None]:
        """Of a microbatch: the message, its tensor, and with a step's last one the gradient of the tied tensor."""
        message, named = self._gradients.pop(id)
        return message, named[GRADIENT], named.get(TIED)

    def commit(self, step: int) -> Commit:
        """What stage 0 has decided of a step that is to be committed."""
        return self._commits.pop(step)

    # Above.

    async def read_above(self, above: Hop, freight: Freight) -> None:
        """Until the trainer finishes. Raises MessageError, RpcError."""
        while (received := await above.receive()) is not None:
            message, payload = received
            match message:
                case Microbatch():
                    await self._take(message, await freight.unload(message, payload))
                case Commit():
                    self._take_commit(message)
                case Settle(serial):
                    self.schedule.settle_arrived(serial)
                case Ping():
                    await above.send(self._post.pace.answer(message))
            self._changed.set()
        self._closing = True
        self.schedule.drop_forwards()
        self._changed.set()

    async def _take(self, message: Microbatch, named: dict[str, torch.Tensor]) -> None:
        if self._input_name not in named:
            raise MessageError(f"a microbatch without '{self._input_name}' for {self._post.stage.name}")
        self._check_loan(message, named)
        if message.train:
            size = StepSize(message.count, message.batch_samples, message.progress, message.claim, message.warmup)
            self._post.standing.note_size(message.step, size)
        self.schedule.forward_arrived(message.id, message.count, message.train)
        self._inputs[Forward(message.id, message.train)] = (message, named)

    def _check_loan(self, message: Microbatch, named: Named) -> None:
        """The tied tensor comes from stage 0 in front of whatever is computed with it, and never amid a step."""
        stage = self._post.stage
        if not stage.tie.travels:
            return
        if TIED in named and (stage.index == 0 or (message.train and message.index > 0)):
            raise MessageError(f"the tied tensor came with microbatch {message.id} to {stage.name}")
        self._is_lent |= TIED in named
        if stage.index > 0 and not self._is_lent:
            raise MessageError(f"microbatch {message.id} came to {stage.name} before the tied tensor")

    def _take_commit(self, message: Commit) -> None:
        size = self._post.standing.size(message.step)
        if size is None or message.samples != size.samples:
            text = f"a commit of step {message.step} with {message.samples} samples, which is not its size"
            raise MessageError(text)
        self.schedule.commit_arrived(message.step)
        self._commits[message.step] = message

    # Below.

    async def read_below(self, below: Below, freight: Freight) -> None:
        """Until the stages below finish. Raises HopError."""
        while (received := await below.receive()) is not None:
            message, payload = received
            try:
                if isinstance(message, Gradient):
                    self._take_gradient(message, await freight.unload(message, payload))
                    below.watch.paid()
                else:
                    await self._answered(below, message)
            except MessageError as error:
                raise below.blame(error) from None
            self._changed.set()
        if not self._closing:
            raise below.blame("UnreachableError", "ended the stream")

    def _take_gradient(self, message: Gradient, named: dict[str, torch.Tensor]) -> None:
        if GRADIENT not in named:
            raise MessageError("a gradient without a tensor")
        is_last = self._post.standing.is_last(message.id)
        if (TIED in named) != (is_last and self._post.stage.tie.travels):
            raise MessageError(f"{sorted(named)} with the gradient of {message.id}")
        if bool(message.square_norms) != (is_last and self._post.limits.needs_norms):
            raise MessageError(f"{len(message.square_norms)} norms with the gradient of {message.id}")
        self.schedule.backward_arrived(message.id)
        self._gradients[message.id] = (message, named)

    async def _answered(self, below: Below, message: Message) -> None:
        match message:
            case Outcome():
                self.schedule.outcome_arrived(message.id)
                below.watch.paid()
                await self._up.put((message, {}))
            case Busy():
                await self._up.put((message, {}))
            case Settled(serial):
                if serial != self._asked or serial == self._agreed["below"]:
                    raise MessageError(f"an answer to request {serial} to settle, which does not wait for one")
                below.watch.paid()
                await self._agree_on(serial, "below")
            case Pong():
                pass  # It may have changed how much may be in flight.
            case _:
                raise MessageError(f"a {type(message).__name__} from a stage that is not the first")

    # Rounds.

    def settling(self, serial: int) -> None:
        """The request to settle goes on to the stages below."""
        self._asked = serial

    async def settled(self, serial: int) -> None:
        """This stage has settled."""
        if self._post.stage.is_last:
            self._agreed["below"] = serial
        await self._agree_on(serial, "here")

    async def _agree_on(self, serial: int, where: str) -> None:
        """This stage, or all below it, have settled; when both have, say so."""
        self._agreed[where] = serial
        if self._agreed["here"] == self._agreed["below"]:
            await self._up.put((Settled(serial), {}))
