"""Whether the server runs, and its counters."""

from __future__ import annotations

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from mamba_ssm.server.problems import Problem, described
from mamba_ssm.server.service import TheService

router = APIRouter()


@router.get("/healthz", responses=described(503))
async def healthz(service: TheService) -> dict[str, str]:
    """Whether the server runs; asked without a key."""
    if not service.worker.alive:
        raise Problem(503, "the thread that runs the model has ended: start the server again")
    return {"status": "ok"}


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **described(401)},
)
async def metrics(service: TheService) -> Response:
    """Counters in Prometheus' text format."""
    return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)
