# SPDX-License-Identifier: Apache-2.0
"""A middleware that gives ``vllm serve`` exit status 1 when its engine has died."""

import asyncio
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from vllm.logger import init_logger

logger = init_logger("vllm.entrypoints.serve.middleware.exit_status")

Message = MutableMapping[str, Any]


class ExitStatusMiddleware:
    """For vLLM's ``--middleware``: exit with status 1 after an engine has died.

    When an engine process dies, vLLM 0.32 with one API server answers the running
    requests with 500, shuts down and exits with status 0. A supervisor takes that
    for a success. With ``--api-server-count 2`` or more, vLLM itself exits with 1.
    A requested shutdown still exits with 0.

    Args:
        app: The ASGI application.
    """

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app

    async def __call__(
        self,
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        """Pass every message on, and set the status at the end of the lifespan."""
        if scope["type"] != "lifespan":
            return await self.app(scope, receive, send)
        # vLLM deletes this attribute before the end.
        engine = getattr(scope["app"].state, "engine_client", None)

        async def send_then_exit(message: Message) -> None:
            await send(message)
            if message["type"] == "lifespan.shutdown.complete" and _has_died(engine):
                logger.error("Exiting with status 1, for the engine has died.")
                # Called by the event loop and not in a task, so that the loop ends
                # and all tasks are cleaned up.
                asyncio.get_running_loop().call_soon(sys.exit, 1)

        await self.app(scope, receive, send_then_exit)


def _has_died(engine: Any) -> bool:
    """Whether an engine process has ended without a shutdown request."""
    resources = getattr(getattr(engine, "engine_core", None), "resources", None)
    manager = getattr(resources, "engine_manager", None)
    if resources is None or manager is None:
        return False  # another process started it and watches it
    told_to = manager.manager_stopped.is_set()
    return bool(manager.failed_proc_name) or (resources.engine_dead and not told_to)
