"""Fed anything: drawn texts as `params.yaml`, and what the product makes of each before any work starts.

`python -m tests.chaos.fuzz_params --count 500 --seed 7 --state .vdmini/chaos --out FILE.json`; stopped, it
goes on with the next one. A text is accepted, and then a dry run must end with its lines or an error of ours,
or it is refused by an error of ours; both readers of the file (`run` and `--set`) must agree, and nothing may
be written.
"""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path

from tests.chaos.drawn import Campaign, TooLong, main
from tests.chaos.param_cases import draw
from vdmini_core.errors import ParamsError, VDMiniError
from vdmini_core.params import Params, load_params


def judge(root: Path, text: bytes, *, dry: bool = True) -> dict[str, str]:
    """What the product makes of one text in a project folder: `fate`, and what was said.

    Args:
        root: a project that was laid out.
        text: of its params.yaml.
        dry: let a dry run plan with what is accepted.
    """
    from tasks.project import preview_params

    path = root / "params.yaml"
    path.write_bytes(text)
    before = sorted(root.rglob("*"))
    fates: dict[str, dict[str, str]] = {}
    accepted: Params | None = None
    for reader, read in (("run", lambda: load_params(path)), ("set", lambda: preview_params(root))):
        try:
            found = read()
        except ParamsError as error:
            fates[reader] = {"fate": "rejected", "said": str(error)}
        except TooLong:
            return {"fate": "hung", "said": reader}
        except Exception:
            return {"fate": "crashed", "said": f"{reader}: {traceback.format_exc()}"}
        else:
            fates[reader] = {"fate": "accepted", "said": ""}
            accepted = found if reader == "run" else accepted
    if fates["run"]["fate"] != fates["set"]["fate"] and not _empty(fates):
        return {"fate": "disagreed", "said": f"{fates}"}
    outcome = fates["run"] if accepted is None or not dry else _dry_run(root, accepted)
    if sorted(root.rglob("*")) != before or path.read_bytes() != text:
        return {"fate": "wrote", "said": outcome["said"]}
    return outcome


def _empty(fates: dict[str, dict[str, str]]) -> bool:
    """`--set` edits a file, so that it needs one with something in it; a run takes the defaults."""
    return "there is no params.yaml here" in fates["set"]["said"]


def _dry_run(root: Path, params: Params) -> dict[str, str]:
    from tasks.dry_run import examine_run, to_rows

    try:
        json.dumps(to_rows(examine_run(root, params)), allow_nan=False)
    except VDMiniError as error:
        return {"fate": "rejected", "said": str(error)}
    except TooLong:
        return {"fate": "hung", "said": "dry run"}
    except Exception:
        return {"fate": "crashed", "said": f"dry run: {traceback.format_exc()}"}
    return {"fate": "accepted", "said": ""}


def prepare(root: Path) -> None:
    """A project as `vdmini init` lays it out."""
    from tasks.project import lay_out

    if not root.exists():
        lay_out(root)
    _dry_run(root, Params())


CAMPAIGN = Campaign(
    module="tests.chaos.fuzz_params",
    name="fuzz-params",
    draw=lambda _, seed, index: draw(seed, index),
    prepare=prepare,
    judge=judge,
    fates=("accepted", "rejected", "crashed", "hung", "forgotten", "disagreed", "wrote", "executed", "asked"),
    head={
        "section": "Fed any parameters",
        "order": 4,
        "command": "make chaos",
        "about": "Parameter files drawn from a seed, as a run and as `--set` read them; good ones get a dry "
        "run.",
    },
)

if __name__ == "__main__":
    sys.exit(main(CAMPAIGN, __doc__))
