"""A stand-in for the hub of weights: a folder as its one repository, which may be in the cache, or only online."""


def stand_in(monkeypatch, folder) -> dict:
    """Put in the hub's place; "asked" lists (repository, of the cache alone, revision where one is named)."""
    import huggingface_hub

    state = {"asked": [], "cached": False, "online": True, "folder": folder}

    def snapshot(repository, revision, allow_patterns, local_files_only):
        state["asked"].append((repository, local_files_only, *([revision] if revision else [])))
        if not state["cached"] and (local_files_only or not state["online"]):
            raise huggingface_hub.errors.LocalEntryNotFoundError("not here")
        state["cached"] = True
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    return state
