"""How kernels are compiled, and whether numba may keep them: its files hold pickles, and reading one runs it."""

import logging
import os
from functools import partial
from pathlib import Path

from numba import njit

from wsol_pipeline.private import own_folder

logger = logging.getLogger(__name__)


def may_be_kept() -> bool:
    """Whether compiled code lies where nobody else can write.

    Without NUMBA_CACHE_DIR it lies beside the code, or in the user's cache folder: who writes there needs no pickle.
    """
    place = os.environ.get("NUMBA_CACHE_DIR")
    if not place:
        return True
    try:
        own_folder(Path(place))
    except OSError as error:
        logger.warning("NUMBA_CACHE_DIR is not used, kernels are compiled in each process: %s", error)
        return False
    return True


jit = partial(njit, cache=may_be_kept(), nogil=True)
