"""Where torch's log lines go."""

from __future__ import annotations

import logging


def join_others() -> None:
    """From now on what torch logs goes where all else does, by the root logger. As torch is imported it gives its
    loggers handlers of their own, which write lines of their own form to stderr."""
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if name.partition(".")[0] != "torch" or not isinstance(logger, logging.Logger):
            continue
        for handler in [one for one in logger.handlers if type(one) is logging.StreamHandler]:  # files were asked for
            logger.removeHandler(handler)
            logger.propagate = True
