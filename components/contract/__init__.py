"""The contract of a part, as a tool: what every part of its role must satisfy, said in one line where it is broken.

    from voxzoo.components.contract import check_part

    check_part(lambda: MyAdaptor(8, 6))

`voxzoo parts check adaptor=mine` does the same by configs.
"""

from .outcome import Check, ContractError, NotAsked, Outcome, collect, report, require
from .part import check_part, examine, role_of

__all__ = [
    "Check",
    "ContractError",
    "NotAsked",
    "Outcome",
    "check_part",
    "collect",
    "examine",
    "report",
    "require",
    "role_of",
]
