"""The gradient index: projected per-example gradients on disk, written once and streamed for every query.

    folder.py     where it lies: a local folder or an fsspec URL
    store.py      one checkpoint: a Zarr v3 group, written chunk by chunk, checked, read
    scoring.py    streams a store against query gradients; keeps the highest and lowest rows

FORMAT.md describes the files for a reader in any language.
"""
