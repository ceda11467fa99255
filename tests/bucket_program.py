"""Checkpoints on gs://, against a stand-in for Google's servers; tests/storage/test_paths.py runs this program."""

import json
import os
import threading

import fake_bucket

server = fake_bucket.Bucket(0)
threading.Thread(target=server.serve_forever, daemon=True).start()
address = f"http://127.0.0.1:{server.server_address[1]}"
os.environ |= {
    "STORAGE_EMULATOR_HOST": address, "TENSORSTORE_GCS_HTTP_URL": address, "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
    "JAX_PLATFORMS": "cpu",
}  # fmt: skip

import numpy as np  # noqa: E402

from robust_gan import checkpoint  # noqa: E402
from robust_gan.config import Config  # noqa: E402
from robust_gan.storage import workdir  # noqa: E402

RUN = "gs://bucket/run"
info = checkpoint.DataInfo("digits", (8, 8, 1), 10, tuple("0123456789"))
state = {"x": np.arange(5, dtype=np.float32)}
with workdir.lock(RUN, Config()) as claimed:
    writer = checkpoint.Writer(claimed.path, Config(), info)
    for step, selection in ((1, 0.9), (2, 0.1)):
        writer.save(step, {"x": state["x"] * step}, {checkpoint.SELECTION: selection})
    writer.close()
    writer = checkpoint.Writer(claimed.path, Config(), info)
    restored, step = writer.restore_latest(state)
    writer.close()
best = checkpoint.read_record(RUN).step
print(json.dumps({"step": step, "x": restored["x"].tolist(), "best": best}), flush=True)
os._exit(0)  # The threads of gcsfs and of the server have nothing to say any more.
