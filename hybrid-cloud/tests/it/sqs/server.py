"""A test server whose wall clock moves on when told: `server.py ministack|moto PORT`.

Each line of standard input is a number of seconds to move on; each is answered with a line. The server ends with its standard input.
"""

import os
import socket
import sys
import threading
import time

kind, port = sys.argv[1], sys.argv[2]
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

machine_time = time.time
moved = 0.0


def moved_time():
    return machine_time() + moved


time.time = moved_time


def answer(text):
    answers.write(text + "\n")
    answers.flush()


def obey():
    global moved
    while True:
        try:
            socket.create_connection(("127.0.0.1", int(port))).close()
            break
        except OSError:
            time.sleep(0.02)
    answer("ready")
    for line in sys.stdin:
        moved += float(line)
        answer("moved")
    os._exit(0)


threading.Thread(target=obey, daemon=True).start()

if kind == "ministack":
    os.environ.update(BIND_HOST="127.0.0.1", MINISTACK_HOST="127.0.0.1", GATEWAY_PORT=port)
    os.environ.update(IOT_MTLS_ENABLED="0", SFTP_ENABLED="0")
    sys.argv = ["ministack"]
    from ministack.app import main

    main()
else:
    import datetime

    import moto.core.utils

    moto.core.utils.utcnow = lambda: datetime.datetime.fromtimestamp(moved_time(), datetime.timezone.utc).replace(tzinfo=None)
    from moto.server import main

    main(["-H", "127.0.0.1", "-p", port])
