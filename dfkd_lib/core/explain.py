"""Why an artifact is as it is: what it was made from, what differs from another, and what has changed since an older one."""

import difflib
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from dfkd_lib.core.code import Fingerprint
from dfkd_lib.core.errors import WorkbenchError
from dfkd_lib.core.manifest import MANIFEST, Artifact
from dfkd_lib.core.provenance import DECISIVE, versions

NAMED = 4  # changes that one line names


def read_manifest(root: Path, key: str) -> dict | None:
    """The manifest of a key as it stands, without a check of the files; None where there is none to read."""
    with suppress(OSError, ValueError):
        found = json.loads((root / key / MANIFEST).read_text())
        return found if isinstance(found, dict) else None
    return None


def finished(root: Path, stage: str = "") -> list[str]:
    """The keys of finished artifacts, of one stage or of all, sorted."""
    found = root.glob(f"{stage}-*" if stage else "*-*")
    return sorted(p.name for p in found if p.suffix != ".partial" and (p / MANIFEST).is_file())


def table_of(manifest: dict) -> dict[str, str]:
    """The table of functions of a manifest; empty for one of an earlier version."""
    return manifest.get("code", {}).get("functions", {})


def differences(old: dict[str, str], new: dict[str, str]) -> list[str]:
    """What differs between two tables, one phrase each: "kd_loss changed", "step: temperature 4.0 → 3.0", "f added"."""
    found = []
    for name in sorted({*old, *new}):
        before, after = old.get(name), new.get(name)
        if before == after:
            continue
        if before is None or after is None:
            found.append(f"{name} {'added' if before is None else 'removed'}")
        elif before.startswith("= ") and after.startswith("= "):
            found.append(f"{name} {before[2:]} → {after[2:]}")
        else:
            found.append(f"{name} changed")
    return found


def made_anew(
    root: Path,
    key: str,
    stage: str,
    settings: dict,
    parents: Sequence[Artifact],
    code: Fingerprint,
) -> str | None:
    """One line on what changed since the newest artifact of equal settings; None if there is none.

    Equal are stage, settings, and stages and settings of the parents, and of theirs.
    """
    wanted = [_lineage(root, parent.key) for parent in parents]
    plain, older = json.loads(json.dumps(settings)), []
    for other in finished(root, stage):
        manifest = read_manifest(root, other)
        if other == key or not manifest or manifest.get("settings") != plain:
            continue
        if [_lineage(root, parent) for parent in manifest.get("parents", [])] == wanted:
            older.append((manifest.get("made", ""), other, manifest))
    if not older:
        return None
    _, other, manifest = max(older, key=lambda one: one[0])
    changed = differences(table_of(manifest), code.table)
    pairs = zip(manifest["parents"], (parent.key for parent in parents), strict=True)
    changed += [f"{new} replaces {old}" for old, new in pairs if old != new]
    named = ", ".join(changed[:NAMED]) or "its code changed"
    more = f" and {len(changed) - NAMED} more" if len(changed) > NAMED else ""
    return f"{key}: made anew: {named}{more}, since {other}"


def _lineage(root: Path, key: str) -> object:
    manifest = read_manifest(root, key)
    if manifest is None:
        return key
    parents = [_lineage(root, parent) for parent in manifest.get("parents", [])]
    return [manifest.get("stage"), manifest.get("settings"), parents]


_reported: set[str] = set()


def report_versions(found: Artifact) -> None:
    """Print, once a process, that an artifact was made by other versions of the libraries than those here."""
    made, here = found.manifest.get("versions", {}), versions(DECISIVE)
    for name in sorted(set(made) & set(here)):
        line = f"{name} {made[name]} → {here[name]}"
        if made[name] != here[name] and line not in _reported:
            _reported.add(line)
            print(
                f"{found.key} was made with another version ({line}), and is used as it is",
                flush=True,
            )


def resolve_key(root: Path, prefix: str) -> str:
    """The key with this prefix; the hash's own prefix is enough.

    Raises:
        WorkbenchError: if there is none, naming the nearest, or several.
    """
    keys = finished(root)
    found = [
        key for key in keys if key.startswith(prefix) or key.rpartition("-")[2].startswith(prefix)
    ]
    found = [prefix] if prefix in keys else found
    if len(found) == 1:
        return found[0]
    if found:
        raise WorkbenchError(
            "several artifacts begin so",
            got=prefix,
            expected=", ".join(found[:8]) + (", ..." if len(found) > 8 else ""),
            where=root,
            fix="write more of the key",
        )
    near = difflib.get_close_matches(prefix, keys, n=1, cutoff=0.3)
    raise WorkbenchError(
        "there is no such artifact",
        got=prefix,
        where=root,
        expected="a key, or the beginning of one",
        fix=f"did you mean {near[0]}?" if near else "dfkd verify lists all of them",
    )


def explain(root: Path, key: str) -> str:
    """What an artifact was made from: settings, parents, ledger, versions, and every function of its code."""
    key = resolve_key(root, key)
    made = read_manifest(root, key) or {}
    reads = [
        f"{row['split']}: {row['images']} images, {row['purpose']} ({row['stage']})"
        for row in made.get("ledger", [])
    ]
    table = table_of(made)
    parts = {
        "made": [
            f"{made.get('made')}, in {made.get('seconds')} s, commit {made.get('commit', 'not recorded')}"
        ],
        "versions": [" ".join(f"{n} {v}" for n, v in made.get("versions", {}).items())],
        "settings": [
            f"{name} = {value}" for name, value in _flat(made.get("settings", {})).items()
        ],
        "parents": made.get("parents", []),
        "real images read": reads,
        "metrics": [
            f"{name} = {json.dumps(value)[:100]}" for name, value in made.get("metrics", {}).items()
        ],
        f"code {made.get('code', {}).get('digest', '')}": [
            f"{n}  {v}" for n, v in sorted(table.items())
        ],
    }
    return _page(key, parts)


def compare(root: Path, first: str, second: str) -> str:
    """What differs between two artifacts: settings, functions, parents, versions, and how much of the code is equal."""
    keys = [resolve_key(root, key) for key in (first, second)]
    one, other = (read_manifest(root, key) or {} for key in keys)
    before, after = (_flat(made.get("settings", {})) for made in (one, other))
    settings = [
        f"{name}: {before.get(name, 'not set')} → {after.get(name, 'not set')}"
        for name in sorted({*before, *after})
        if before.get(name) != after.get(name)
    ]
    parents = [
        f"{old or 'none'} → {new or 'none'}"
        for old, new in _paired(one.get("parents", []), other.get("parents", []))
        if old != new
    ]
    known = [made.get("versions", {}) for made in (one, other)]
    versions = [
        f"{name}: {known[0].get(name)} → {known[1].get(name)}"
        for name in sorted({*known[0], *known[1]})
        if known[0].get(name) != known[1].get(name)
    ]
    tables = [table_of(one), table_of(other)]
    stage = (
        []
        if one.get("stage") == other.get("stage")
        else [f"{one.get('stage')} → {other.get('stage')}"]
    )
    parts = {
        "stage": stage,
        "settings": settings,
        "code": differences(*tables),
        "parents": parents,
        "versions": versions,
    }
    return (
        _page(f"{keys[0]} → {keys[1]}", parts)
        if any(parts.values())
        else f"{' and '.join(keys)} do not differ"
    )


def _paired(one: list, other: list) -> list[tuple]:
    """Parents in order, by stage, the shorter list filled with None."""
    stages = dict.fromkeys(key.rpartition("-")[0] for key in [*one, *other])
    pairs = []
    for stage in stages:
        left, right = ([k for k in keys if k.rpartition("-")[0] == stage] for keys in (one, other))
        most = max(len(left), len(right))
        pairs += zip(
            left + [None] * (most - len(left)), right + [None] * (most - len(right)), strict=True
        )
    return pairs


def _flat(tree: dict, before: str = "") -> dict[str, object]:
    """Nested settings by dotted names."""
    found = {}
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            found |= _flat(value, f"{before}{name}.")
        else:
            found[f"{before}{name}"] = value
    return found


def _page(title: str, parts: dict[str, list[str]]) -> str:
    lines = [title]
    for name, entries in parts.items():
        if entries:
            lines += [f"{name.strip()}:", *(f"  {entry}" for entry in entries)]
    return "\n".join(lines)
