"""Holds the lock of the run in the directory of its first argument."""

import fcntl
import os
import socket
import sys
import time

stream = open(sys.argv[1] + "/.vaelib-lock", "w")  # noqa: SIM115
fcntl.flock(stream, fcntl.LOCK_EX)
stream.write(f"{os.getpid()} {socket.gethostname()}")
stream.flush()
print("held", flush=True)
time.sleep(60)
