"""In every process of a server that is measured: tells, when it is asked, what the interpreter and malloc hold."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import socket
import sys
import threading

_MALLOC = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")


class _Malloc(ctypes.Structure):
    """mallinfo2(3): of all arenas."""

    _fields_ = [(name, ctypes.c_size_t) for name in _MALLOC]


def _serve() -> None:
    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = _Malloc
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as asked:
        asked.bind(f"\0opara-probe-{os.getpid()}")
        while True:
            _, asker = asked.recvfrom(1)
            gc.collect()
            statistics, malloc = gc.get_stats(), mallinfo()
            told = {
                "blocks": sys.getallocatedblocks(),
                "malloc_bytes": malloc.uordblks + malloc.hblkhd,
                "collections": statistics[0]["collections"],
                "in_cycles": sum(generation["collected"] for generation in statistics),
            }
            asked.sendto(json.dumps(told).encode(), asker)


threading.Thread(target=_serve, name="opara-probe", daemon=True).start()
