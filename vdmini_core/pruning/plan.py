"""A plan: immutable data that says what is removed from which teacher, and what must come out."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from vdmini_core.artifacts import read_json, write_json
from vdmini_core.errors import PlanError, VDMiniError

VAE_DECODER_PLAN = "vae_decoder.json"  # beside plan.json, where the decoder is cut too


@dataclass(frozen=True)
class Plan:
    """What to remove, bound to one teacher.

    Attributes:
        recipe: how it was chosen: `paper`, `auto`, `manual`, `magnitude`, `random`, `depgraph`.
        removed: units in canonical spelling, in the order the data meets them.
        teacher_fingerprint: sha256 of the teacher it is for, or `architecture:...` where any weights do.
        family: name of the model family.
        teacher_params: parameters of the teacher.
        teacher_flops: operations of one pass of the teacher, batch 1.
        expected_params: parameters the student has exactly.
        expected_flops: operations of one pass of the student.
        layer_map: student module path prefix -> teacher module path prefix; weight copy reads it.
        feature_pairs: (student module path, teacher module path) whose outputs match; recovery reads it.
        channels: module path -> the inner channels that stay there, ascending, where not all do.
        notes: sentences for people: budget, damage, runners-up.
    """

    recipe: str
    removed: tuple[str, ...]
    teacher_fingerprint: str
    family: str
    teacher_params: int
    teacher_flops: int
    expected_params: int
    expected_flops: int
    layer_map: dict[str, str]
    feature_pairs: tuple[tuple[str, str], ...]
    channels: dict[str, tuple[int, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def params_ratio(self) -> float:
        """Student / teacher parameters."""
        return self.expected_params / self.teacher_params

    @property
    def flops_ratio(self) -> float:
        """Student / teacher operations."""
        return self.expected_flops / self.teacher_flops

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able data."""
        data = asdict(self)
        data["removed"], data["notes"] = list(self.removed), list(self.notes)
        data["feature_pairs"] = [list(pair) for pair in self.feature_pairs]
        data["channels"] = {path: list(kept) for path, kept in self.channels.items()}
        return data

    @classmethod
    def from_dict(cls, data: Any) -> Plan:
        """The plan that `to_dict` wrote.

        Raises:
            PlanError: keys missing, unknown or of the wrong type.
        """
        names = [part.name for part in fields(cls)]
        if not isinstance(data, dict) or sorted(data) != sorted(names):
            found = ", ".join(sorted(data)) if isinstance(data, dict) else type(data).__name__
            raise PlanError("this is not a plan", expected=", ".join(names), found=found)
        try:
            pairs = tuple((str(student), str(teacher)) for student, teacher in data["feature_pairs"])
            channels = {str(k): tuple(int(c) for c in kept) for k, kept in data["channels"].items()}
            layer_map = {str(k): str(v) for k, v in data["layer_map"].items()}
            removed, notes = (tuple(str(x) for x in data[key]) for key in ("removed", "notes"))
            numbers = {key: int(data[key]) for key in names if key.endswith(("_params", "_flops"))}
        except (TypeError, ValueError, AttributeError) as error:
            raise PlanError(
                "this is not a plan", found=str(error), fix="`vdmini plan` writes one: plan.json"
            ) from None
        return cls(
            recipe=str(data["recipe"]),
            removed=removed,
            teacher_fingerprint=str(data["teacher_fingerprint"]),
            family=str(data["family"]),
            layer_map=layer_map,
            feature_pairs=pairs,
            channels=channels,
            notes=notes,
            **numbers,
        )

    def save(self, path: Path) -> None:
        """Write the plan as JSON."""
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: Path) -> Plan:
        """Read a plan.

        Raises:
            PlanError: when the file is missing or holds no plan.
        """
        try:
            return cls.from_dict(read_json(Path(path)))
        except PlanError as error:
            raise PlanError(f"{path}: {error.problem}", expected=error.expected, found=error.found) from None
        except VDMiniError as error:
            raise PlanError(error.problem, expected="a plan.json", fix=error.fix) from None

    def describe(self) -> str:
        """The plan as a short table for people."""
        lines = [
            f"recipe      {self.recipe}",
            f"removed     {', '.join(self.removed) or 'nothing'}"
            + (f"; inner channels of {len(self.channels)} layers" if self.channels else ""),
            f"parameters  {_size(self.teacher_params)} -> {_size(self.expected_params)}"
            f"  ({self.params_ratio:.1%} left)",
            f"FLOPs       {_size(self.teacher_flops)} -> {_size(self.expected_flops)}"
            f"  ({self.flops_ratio:.1%} left)",
            f"teacher     {self.family}, {self.teacher_fingerprint[:24]}",
        ]
        return "\n".join(lines + [f"note        {note}" for note in self.notes])


def diff_plans(first: Plan, second: Plan) -> dict[str, Any]:
    """What two plans disagree on.

    Returns:
        `only_first`, `only_second`: units removed by one alone; `same_teacher`; `changed`: field -> [a, b]
        for recipe, expected parameters and operations; `narrowed`: module path -> inner channels left in
        each (None: all), where they differ.
    """
    compared = ("recipe", "family", "expected_params", "expected_flops")
    return {
        "only_first": [unit for unit in first.removed if unit not in second.removed],
        "only_second": [unit for unit in second.removed if unit not in first.removed],
        "same_teacher": first.teacher_fingerprint == second.teacher_fingerprint,
        "changed": {
            name: [getattr(first, name), getattr(second, name)]
            for name in compared
            if getattr(first, name) != getattr(second, name)
        },
        "narrowed": {
            path: [len(plan.channels[path]) if path in plan.channels else None for plan in (first, second)]
            for path in sorted({*first.channels, *second.channels})
            if first.channels.get(path) != second.channels.get(path)
        },
    }


def _size(count: int) -> str:
    for unit, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= scale:
            return f"{count / scale:.3f} {unit}"
    return str(count)
