# Runs a program for as long as this process's standard input stays open: the write end belongs to the process that started it,
# so the system closes it whatever that one dies of. Then the program goes with everything it has started, and its folder.
import os
import shutil
import signal
import subprocess
import sys
import threading

folder, program = sys.argv[1], sys.argv[2:]
child = subprocess.Popen(program, stdin=subprocess.DEVNULL, start_new_session=True)


def watch():
    while os.read(0, 4096):
        pass
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


threading.Thread(target=watch, daemon=True).start()
code = child.wait()
if folder:
    shutil.rmtree(folder, ignore_errors=True)
os._exit(code if code >= 0 else 128 - code)
