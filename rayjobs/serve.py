r"""Serve a finished model: a page to drop a photograph on, and an endpoint that answers in JSON.

    python rayjobs/serve.py --study bas                       # http://127.0.0.1:8000
    curl --data-binary @bird.jpg -H 'Content-Type: image/jpeg' 'http://127.0.0.1:8000/api/localize?threshold=0.3'
    WSOL_SERVE_TOKEN=... python rayjobs/serve.py --model models:/bas@champion --host 0.0.0.0 --replicas 2

It answers this machine alone unless --host says otherwise, and then only who bears the token. Ctrl+C ends it, and the
Ray that it started.
"""

import contextlib
import importlib.util
import time

from wsol_pipeline import interrupts
from wsol_pipeline.console.command_line import command_line
from wsol_pipeline.console.main import run_main
from wsol_pipeline.errors import UsageError
from wsol_pipeline.use.options import ServeOptions as Options


def main(args: list[str] | None = None) -> int:
    options = command_line(Options, args, __doc__)
    if importlib.util.find_spec("watchfiles") is None:  # of ray[serve] alone
        raise UsageError("serve needs ray[serve]: pip install 'wsol[serve]'.")
    from wsol_pipeline.use.serve import serving

    with contextlib.suppress(KeyboardInterrupt), serving(options) as address:
        print(f"Serving at {address}; Ctrl+C ends it.", flush=True)
        while not interrupts.asked():
            time.sleep(0.2)
    print("ended")
    return 0


if __name__ == "__main__":
    run_main(main)
