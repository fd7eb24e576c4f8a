"""OpenAI's /v1/models: the one that is served."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from mamba_ssm.server.problems import described
from mamba_ssm.server.service import Service, TheService

router = APIRouter(prefix="/v1")


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "mamba-esi"


class Models(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


def _model(service: Service) -> Model:
    return Model(id=service.model_id, created=service.started)


@router.get("/models", responses=described(401))
async def list_models(service: TheService) -> Models:
    """The models that are served."""
    return Models(data=[_model(service)])


@router.get("/models/{model:path}", responses=described(401, 404))
async def retrieve_model(model: str, service: TheService) -> Model:
    """One of them by its name, which may hold a slash."""
    service.check_model(model)
    return _model(service)
