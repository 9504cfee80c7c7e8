"""What every section of the parameters shares."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """Base of every section: immutable, no unknown keys, no NaN or infinite numbers, defaults checked."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)


class BaseParams(Section):
    """What every stage needs."""

    seed: int = Field(0, ge=0, lt=2**31, description="root of every random number")
    threads: int = Field(
        2, ge=1, le=256, description="torch threads of a stage, shared by its workers; bytes depend on it"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: cuda where there is one")
    hardware: Literal["a100-80gb", "h100", "h200"] | None = Field(
        None, description="GPU, one for each worker, that `run --dry-run` counts memory and time of"
    )
