"""A client that makes its own frames of HTTP/2, to do what gRPC's never would."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from hpack import Decoder, Encoder
from hyperframe.frame import DataFrame, Frame, GoAwayFrame, HeadersFrame, PingFrame, RstStreamFrame, SettingsFrame

PATIENCE_S = 60.0
COMPRESSED = 1
NO_ERROR, REFUSED_STREAM, ENHANCE_YOUR_CALM = 0, 7, 11
MAX_CONCURRENT_STREAMS = 3
PING = PingFrame(0, b"are you?")
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_HEAD = 9  # bytes of a frame before its body
_MOST = 16384  # bytes of data in one frame


def framed(message: bytes, flags: int = 0) -> bytes:
    """``message`` as gRPC has it in its DATA frames."""
    return struct.pack(">BI", flags, len(message)) + message


class RawConnection:
    """It answers what keeps a connection alive only while something is waited for."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._encoder, self._decoder = Encoder(), Decoder()
        self._next_stream = 1
        self._come: list[Frame] = []
        self._pings = 0  # that the server has been asked to answer
        self._headers: dict[int, dict[str, str]] = {}  # by stream, the last that came

    async def send(self, *frames: Frame) -> None:
        await self.send_bytes(b"".join(frame.serialize() for frame in frames))

    async def send_bytes(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    def request_frames(self, path: str, data: bytes, *, end: bool = True, **headers: str) -> list[Frame]:
        """Of a new call. ``headers``: others than every call's, with _ for -."""
        stream, self._next_stream = self._next_stream, self._next_stream + 2
        always = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "test"}
        always |= {"content-type": "application/grpc", "te": "trailers"}
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        block = self._encoder.encode([*always.items(), *named.items()])
        parts = [data[at : at + _MOST] for at in range(0, len(data), _MOST)] or [b""]
        frames: list[Frame] = [HeadersFrame(stream, block, flags=["END_HEADERS"])]
        frames += [DataFrame(stream, part) for part in parts]
        if end:
            frames[-1].flags.add("END_STREAM")
        return frames

    async def call(self, path: str, data: bytes = b"", *, end: bool = True, **headers: str) -> int:
        """The number of its stream. See ``request_frames``."""
        frames = self.request_frames(path, data, end=end, **headers)
        await self.send(*frames)
        return frames[0].stream_id

    async def trailers(self, stream: int) -> dict[str, str]:
        """The headers that end a call, with its grpc-status."""
        await self._until(lambda frame: frame.stream_id == stream and "END_STREAM" in frame.flags)
        return self._headers[stream]

    async def told_to_go(self) -> GoAwayFrame:
        frame = await self._until(lambda frame: isinstance(frame, GoAwayFrame))
        assert isinstance(frame, GoAwayFrame)
        return frame

    async def reset_stream(self) -> RstStreamFrame:
        """The first one that the server resets."""
        frame = await self._until(lambda frame: isinstance(frame, RstStreamFrame))
        assert isinstance(frame, RstStreamFrame)
        return frame

    async def all_has_come(self) -> None:
        """Whatever was sent before: the server answers a ping."""
        self._pings += 1
        ping = PingFrame(0, struct.pack(">Q", self._pings))
        await self.send(ping)
        await self._until(lambda f: isinstance(f, PingFrame) and "ACK" in f.flags and f.opaque_data == ping.opaque_data)

    async def settings(self) -> dict[int, int]:
        """The server's."""
        frame = await self._until(lambda frame: isinstance(frame, SettingsFrame) and "ACK" not in frame.flags)
        assert isinstance(frame, SettingsFrame)
        return frame.settings

    async def end(self) -> None:
        """Once the server has closed the connection; nothing is answered until then."""
        async with asyncio.timeout(PATIENCE_S):
            with suppress(ConnectionError):
                while await self._reader.read(_MOST):
                    pass

    async def _until(self, wanted: Callable[[Frame], bool]) -> Frame:
        """The first such frame of all that came. Fails where the connection ends before."""
        for frame in self._come:
            if wanted(frame):
                return frame
        async with asyncio.timeout(PATIENCE_S):
            while not wanted(frame := await self._receive()):
                pass
        return frame

    async def _receive(self) -> Frame:
        frame, length = Frame.parse_frame_header(memoryview(await self._reader.readexactly(_HEAD)))
        frame.parse_body(memoryview(await self._reader.readexactly(length)))
        self._come.append(frame)
        if isinstance(frame, HeadersFrame):
            self._headers[frame.stream_id] = {str(name): str(value) for name, value in self._decoder.decode(frame.data)}
        elif isinstance(frame, PingFrame) and "ACK" not in frame.flags:
            await self.send(PingFrame(0, frame.opaque_data, flags=["ACK"]))
        elif isinstance(frame, SettingsFrame) and "ACK" not in frame.flags:
            await self.send(SettingsFrame(0, flags=["ACK"]))
        return frame

    def reset(self) -> None:
        """The connection ends with a TCP RST: nothing says goodbye."""
        connected = self._writer.get_extra_info("socket")
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()


@asynccontextmanager
async def raw_connection(address: str) -> AsyncIterator[RawConnection]:
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    raw = RawConnection(reader, writer)
    await raw.send_bytes(_PREFACE + SettingsFrame(0).serialize())
    try:
        yield raw
    finally:
        writer.close()
