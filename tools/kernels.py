"""Kernels that notebooks run in unattended, through nbclient or papermill."""

import time
from queue import Empty

from jupyter_client import AsyncKernelClient, AsyncKernelManager
from jupyter_client.channels import AsyncZMQSocketChannel

LOOK_AGAIN = 1.0  # s


class Channel(AsyncZMQSocketChannel):
    """A channel whose waits end: it looks for a message once per second.

    A socket announces a message once. jupyter_client answers widgets through a second handle on the same socket, which
    can take that announcement away; a wait without an end then never ends (seen once in some ten runs of a notebook
    with sliders).
    """

    async def get_msg(self, timeout: float | None = None) -> dict:
        """The next message within `timeout` seconds (None: wait for it). Raises queue.Empty when none comes."""
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            left = LOOK_AGAIN if end is None else min(LOOK_AGAIN, max(0.0, end - time.monotonic()))
            try:
                return await super().get_msg(timeout=left)
            except Empty:
                if end is not None and time.monotonic() >= end:
                    raise


class Client(AsyncKernelClient):
    """A client of such channels; the heartbeat keeps its own."""

    iopub_channel_class = shell_channel_class = stdin_channel_class = control_channel_class = Channel


class Manager(AsyncKernelManager):
    """Starts a kernel and gives clients of the kind above. For nbclient and papermill: kernel_manager_class=Manager."""

    client_factory = Client


OPTIONS = {  # of nbclient and papermill
    "kernel_name": "python3",
    # not warnings: newer kernels give one at each start; not errors: some report the interrupt that ends them as one
    "extra_arguments": ["--log-level=50"],
    "kernel_manager_class": Manager,
}
