# SPDX-License-Identifier: Apache-2.0
"""A status for supervisors: ``vllm serve`` fails when its engine has failed."""

import asyncio
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from vllm.logger import init_logger

logger = init_logger("vllm.entrypoints.serve.middleware.exit_status")

Message = MutableMapping[str, Any]


class ExitStatusMiddleware:
    """For vLLM's ``--middleware``: exit with 1 after an engine process died.

    vLLM 0.32 with one API server notices such a death, answers what is running
    with 500, shuts down in order and exits with 0, which a supervisor takes for
    a success. With ``--api-server-count 2`` or more vLLM itself exits with 1. A
    shutdown that somebody asked for stays a success.

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
        """Pass everything on; act at the end of the application's life."""
        if scope["type"] != "lifespan":
            return await self.app(scope, receive, send)
        # vLLM takes it out of the application before the end.
        engine = getattr(scope["app"].state, "engine_client", None)

        async def send_then_exit(message: Message) -> None:
            await send(message)
            if message["type"] == "lifespan.shutdown.complete" and _has_died(engine):
                logger.error("Exiting with status 1, for the engine has died.")
                # Ends the event loop from outside of all tasks, whose clean-up
                # it runs.
                asyncio.get_running_loop().call_soon(sys.exit, 1)

        await self.app(scope, receive, send_then_exit)


def _has_died(engine: Any) -> bool:
    """Whether an engine's process has ended without being told to."""
    resources = getattr(getattr(engine, "engine_core", None), "resources", None)
    manager = getattr(resources, "engine_manager", None)
    if resources is None or manager is None:
        return False  # another process has started it, and watches it
    told_to = manager.manager_stopped.is_set()
    return bool(manager.failed_proc_name) or (resources.engine_dead and not told_to)
