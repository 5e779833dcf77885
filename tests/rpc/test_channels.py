"""Connections: kept while used, few when not."""

from __future__ import annotations

from distqat.ids import Endpoint
from distqat.rpc.channels import Channels
from distqat.rpc.transport import Lane
from tests.support import run

A, B, C = (Endpoint("127.0.0.1", port) for port in (1, 2, 3))


def test_the_longest_unused_connection_goes_first_and_one_in_use_never() -> None:
    async def main() -> None:
        channels = Channels(1 << 20, max_channels=2)
        async with channels.use(A, Lane.CONTROL) as first:
            async with channels.use(B, Lane.CONTROL) as second:
                pass
            async with channels.use(C, Lane.CONTROL):
                assert len(channels) == 2
            async with channels.use(A, Lane.CONTROL) as again:
                assert again is first
        async with channels.use(B, Lane.CONTROL) as other:
            assert other is not second
        await channels.close()
        assert len(channels) == 0

    run(main())


def test_lanes_do_not_share() -> None:
    async def main() -> None:
        channels = Channels(1 << 20)
        async with channels.use(A, Lane.CONTROL) as control, channels.use(A, Lane.BULK) as bulk:
            assert control is not bulk
        await channels.close()

    run(main())
