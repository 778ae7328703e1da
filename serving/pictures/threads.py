"""Makes the threads that decode pictures, and has them give way to those that answer."""

import os
import sys
import threading

NICENESS = 10


def give_way() -> None:
    """Has the calling thread run behind others that want a core: on Linux, niceness is each thread's own."""
    if sys.platform == "linux":
        usual = os.getpriority(os.PRIO_PROCESS, os.getpid())
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), usual + NICENESS)
