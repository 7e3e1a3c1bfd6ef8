"""Why an artifact is as it is: what it was made from, what differs from another, and what has changed since an older one."""

import difflib
import json
from collections.abc import Iterator, Sequence
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
        before, after = old.get(name, ""), new.get(name, "")
        if before == after:
            continue
        if before.startswith("= ") and after.startswith("= "):
            found.append(f"{name} {before[2:]} → {after[2:]}")
        else:
            found.append(
                f"{name} {'changed' if before and after else 'removed' if before else 'added'}"
            )
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
    several = ", ".join(found[:8]) + (", ..." if len(found) > 8 else "")
    near = difflib.get_close_matches(prefix, keys, n=1, cutoff=0.3)
    fix = f"did you mean {near[0]}?" if near else "dfkd verify lists all of them"
    raise WorkbenchError(
        "several artifacts begin so" if found else "there is no such artifact",
        got=prefix,
        where=root,
        expected=several or "a key, or the beginning of one",
        fix="write more of the key" if found else fix,
    )


def explain(root: Path, key: str) -> str:
    """What an artifact was made from: settings, parents, ledger, versions, and every function of its code."""
    key = resolve_key(root, key)
    made = read_manifest(root, key) or {}
    reads = [
        f"{row['split']}: {row['images']} images, {row['purpose']} ({row['stage']})"
        for row in made.get("ledger", [])
    ]
    when = f"{made.get('made')}, in {made.get('seconds')} s, commit {made.get('commit', 'not recorded')}"
    code = f"code {made.get('code', {}).get('digest', '')}"
    parts = {
        "made": [when],
        "versions": [" ".join(f"{n} {v}" for n, v in made.get("versions", {}).items())],
        "settings": [f"{n} = {v}" for n, v in flat(made.get("settings", {})).items()],
        "parents": made.get("parents", []),
        "real images read": reads,
        "kept from others": [made.get("guard", "not recorded")],
        "metrics": [f"{n} = {json.dumps(v)[:100]}" for n, v in made.get("metrics", {}).items()],
        code: [f"{n}  {v}" for n, v in sorted(table_of(made).items())],
    }
    return _page(key, parts)


def compare(root: Path, first: str, second: str) -> str:
    """What differs between two artifacts: settings, functions, parents, versions, and how much of the code is equal."""
    keys = [resolve_key(root, key) for key in (first, second)]
    one, other = (read_manifest(root, key) or {} for key in keys)
    parts = {
        "stage": _changed(*({"stage": made.get("stage")} for made in (one, other))),
        "settings": _changed(*(flat(made.get("settings", {})) for made in (one, other))),
        "code": differences(table_of(one), table_of(other)),
        "parents": _changed(*(_by_stage(made.get("parents", [])) for made in (one, other))),
        "versions": _changed(*(made.get("versions", {}) for made in (one, other))),
    }
    if not any(parts.values()):
        return f"{' and '.join(keys)} do not differ"
    return _page(f"{keys[0]} → {keys[1]}", parts)


def differing(a: dict, b: dict) -> Iterator[tuple[str, object, object]]:
    """(name, value in a, value in b) of what two dictionaries hold differently; a dash where one lacks it."""
    for name in a | b:
        if a.get(name) != b.get(name):
            yield name, a.get(name, "–"), b.get(name, "–")


def _changed(a: dict, b: dict) -> list[str]:
    return [f"{name}: {x} → {y}" for name, x, y in differing(a, b)]


def _by_stage(keys: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for key in keys:
        stage = key.rpartition("-")[0]
        found[stage] = f"{found[stage]}, {key}" if stage in found else key
    return found


def flat(tree: dict, before: str = "") -> dict[str, object]:
    """Nested settings by dotted names."""
    found: dict[str, object] = {}
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{before}{name}.")
        else:
            found[f"{before}{name}"] = value
    return found


def _page(title: str, parts: dict[str, list[str]]) -> str:
    lines = [title]
    for name, entries in parts.items():
        if entries:
            lines += [f"{name.strip()}:", *(f"  {entry}" for entry in entries)]
    return "\n".join(lines)
