"""Real servers, in a thread, on a free port."""

import asyncio
import contextlib
import threading

import httpx
import uvicorn

from mamba_ssm.server.app import create_app
from mamba_ssm.server.run import listen
from mamba_ssm.server.settings import Settings


class Served:
    """A server that runs: its app, its address, and a client for it."""

    def __init__(self, app, url):
        self.app, self.url = app, url
        self.service = app.state.service
        self.model = self.service.model_id
        self.http = httpx.Client(base_url=url, timeout=60)

    def openai(self, **options):
        import openai

        return openai.OpenAI(base_url=f"{self.url}/v1", **{"api_key": "none", "max_retries": 0, **options})


@contextlib.contextmanager
def serving(engine, book=None, shelf=None, **settings):
    app = create_app(engine, book, Settings(**settings), shelf)
    with listen("127.0.0.1", 0) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="on", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])))
        thread.start()
        served = Served(app, f"http://127.0.0.1:{listening.getsockname()[1]}")
        try:
            while not server.started and thread.is_alive():
                thread.join(0.01)
            yield served
        finally:
            served.http.close()
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()
