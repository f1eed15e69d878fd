from pathlib import Path
def write_page(d, folder: Path) -> Path:
    return folder / "diagnosis.html"
