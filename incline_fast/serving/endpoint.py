"""``/v1/incline``: list, load and unload maps while the server runs.

An endpoint plugin of vLLM, which loads such plugins only where ``VLLM_PLUGINS`` names them
(``VLLM_PLUGINS=incline_fast``); the server's API key guards these routes as it guards the others under ``/v1``.

    GET    /v1/incline           the maps that requests can name
    POST   /v1/incline           {"name": "fr-en", "path": "fr-en.safetensors"}: load a file of the configured folder
    DELETE /v1/incline/{name}    refuse the name from now on; running requests keep their map
"""

from __future__ import annotations

import asyncio
from typing import Any

from incline_fast.alignment.metadata import library_version
from incline_fast.serving.catalog import Catalog
from incline_fast.serving.errors import RequestError
from incline_fast.serving.frontend import catalog_of

__all__ = ["Endpoint"]

_STATE = "incline_fast"


class MapService:
    """What the routes do, without HTTP.

    Args:
        engine: vLLM's ``EngineClient``.
        catalog: of the engine's front end.
    """

    def __init__(self, engine: Any, catalog: Catalog) -> None:
        self._engine = engine
        self._catalog = catalog
        self._one_at_a_time = asyncio.Lock()

    def list(self) -> dict[str, Any]:
        """The loaded maps and what else can be loaded."""
        entries = self._catalog.entries()
        layout, folder = self._catalog.layout, self._catalog.config.folder
        files = [] if folder is None else sorted(path.name for path in folder.glob("*.safetensors"))
        return {
            "maps": {name: entry.describe() for name, entry in entries.items()},
            "files": files,
            "max_maps": layout.max_maps,
            "max_rank": layout.rank,
            "max_alpha": self._catalog.config.max_alpha,
            "version": library_version(),
        }

    async def load(self, name: object, path: object) -> dict[str, Any]:
        """Load a file of the configured folder under a name; running requests keep what the name stood for before.

        Raises:
            RequestError: the name or the file cannot be used, or no slot is free.
        """
        if not (isinstance(name, str) and name and name.isprintable() and "/" not in name and len(name) <= 100):
            raise RequestError(f"name is {name!r}; expected a short text without slashes", "name", name)
        if not isinstance(path, str):
            raise RequestError(f"path is {path!r}; expected a file's name in the configured folder", "path", path)
        async with self._one_at_a_time:
            entry = await asyncio.to_thread(self._catalog.read, self._catalog.file_of(path))
            named = [other.content for key, other in self._catalog.entries().items() if key != name]
            problems = await self._engine.collective_rpc("incline_load", args=(entry.path, entry.content, named))
            for problem in problems:
                if problem:
                    raise RequestError(problem, "path", path)
            self._catalog.put(name, entry)
        return {"name": name, **entry.describe()}

    def unload(self, name: str) -> dict[str, Any]:
        """Refuse a name from now on.

        Raises:
            RequestError: there is no such name.
        """
        return {"name": name, **self._catalog.remove(name).describe()}


class Endpoint:
    """Entry point ``vllm.endpoint_plugins``."""

    name = "incline_fast"
    required_tasks = ("generate",)

    def attach_router(self, app: Any) -> None:
        """Add the routes."""
        from fastapi import Request
        from fastapi.responses import JSONResponse

        def answer(error: RequestError) -> Any:
            body = {"message": str(error), "type": "BadRequestError", "param": error.argument, "code": 400}
            return JSONResponse({"error": body}, status_code=400)

        def service(request: Any) -> MapService:
            found: MapService | None = getattr(request.app.state, _STATE, None)
            if found is None:
                raise RequestError("this server was started without maps", "incline")
            return found

        async def list_maps(request: Request) -> Any:
            try:
                return JSONResponse(service(request).list())
            except RequestError as error:
                return answer(error)

        async def load_map(request: Request) -> Any:
            try:
                body = await request.json()
            except ValueError:
                body = None
            if not isinstance(body, dict):
                return answer(RequestError('the body is not an object with "name" and "path"', "body"))
            try:
                return JSONResponse(await service(request).load(body.get("name"), body.get("path")))
            except RequestError as error:
                return answer(error)

        async def unload_map(name: str, request: Request) -> Any:
            try:
                return JSONResponse(service(request).unload(name))
            except RequestError as error:
                return answer(error)

        # Annotations are strings in this module, which FastAPI cannot resolve for a local class: these are objects.
        for function in (list_maps, load_map, unload_map):
            function.__annotations__["request"] = Request
        app.add_api_route("/v1/incline", list_maps, methods=["GET"])
        app.add_api_route("/v1/incline", load_map, methods=["POST"])
        app.add_api_route("/v1/incline/{name}", unload_map, methods=["DELETE"])

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Give the routes their engine.

        Raises:
            ServingError: several front ends would each have their own names.
        """
        from incline_fast.serving.errors import ServingError

        catalog = None if engine_client is None else catalog_of(engine_client.input_processor)
        if catalog is None:
            return
        if getattr(args, "api_server_count", None) not in (None, 1):
            raise ServingError(
                "api_server_count is above 1; maps loaded through one front end would be unknown to others"
            )
        setattr(state, _STATE, MapService(engine_client, catalog))
