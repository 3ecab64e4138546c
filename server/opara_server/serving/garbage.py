"""Python's collector of reference cycles, which holds all threads while it looks at every object there is.

What a model's loading leaves, a hundred thousand objects of torch's exporters and of the program, is looked at for
0.1 s and longer, and most often under load: what many requests in flight hold counts as new. So what is there once a
model is loaded is looked at once, and then left out (``gc.freeze``); what goes with a model that is unloaded is looked
for then. Only in a process that leaves out its imports already (``commands.serve``, ``workers.child``): others, as
tests, have objects of which nothing is known here.
"""

from __future__ import annotations

import gc


def keep() -> None:
    """Collect what is garbage of all that is new, and leave out the rest from now on."""
    if gc.get_freeze_count():
        gc.collect()
        gc.freeze()


def look_again() -> None:
    """Collect what is garbage of all there is, and leave out the rest from now on."""
    if gc.get_freeze_count():
        gc.unfreeze()
        gc.collect()
        gc.freeze()
