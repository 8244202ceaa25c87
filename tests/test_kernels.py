"""A wait for a kernel's message ends, even when the announcement of the message is lost."""

import asyncio
from queue import Empty

import pytest
import zmq.asyncio
from jupyter_client import AsyncKernelClient
from jupyter_client.session import Session
from nbclient import NotebookClient

from tools import kernels
from tools.kernels import Channel, Client, Manager


class Forgetful(zmq.asyncio.Socket):
    """A socket that announces its message only when it is asked for the second time."""

    asked = 0

    async def poll(self, timeout=None, flags=zmq.POLLIN):
        self.asked += 1
        return 0 if self.asked == 1 else zmq.POLLIN


def test_a_lost_announcement_does_not_end_in_an_endless_wait(monkeypatch):
    async def receive():
        channel = Channel(Forgetful(zmq.asyncio.Context.instance(), zmq.DEALER), Session(key=b""))
        monkeypatch.setattr(channel, "_recv", lambda **_: asyncio.sleep(0, {"content": "here"}))
        return await channel.get_msg()

    assert asyncio.run(receive()) == {"content": "here"}


def test_a_wait_with_an_end_ends(monkeypatch):
    monkeypatch.setattr(kernels, "LOOK_AGAIN", 0.01)

    async def receive():
        context = zmq.asyncio.Context.instance()
        with context.socket(zmq.DEALER) as socket:
            await Channel(socket, Session(key=b"")).get_msg(timeout=0.05)

    with pytest.raises(Empty):
        asyncio.run(receive())


def test_notebooks_run_with_such_channels_and_others_keep_theirs():
    client = Manager().client()
    assert isinstance(client, Client) and client.iopub_channel_class is client.shell_channel_class is Channel
    assert AsyncKernelClient.iopub_channel_class is not Channel
    assert (
        NotebookClient(None, kernel_manager_class=kernels.OPTIONS["kernel_manager_class"]).kernel_manager_class
        is Manager
    )
