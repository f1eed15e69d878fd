"""headwater plan"""

from __future__ import annotations

import json
from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headwater.cli.options import COMPUTING, DATA, MODELS, AsJson, Dtype, Parameters

if TYPE_CHECKING:
    from headwater.forecast.cost import Cluster, Forecast, Work
    from headwater.forecast.shapes import ModelShape


class Stored(StrEnum):
    float32, float16, int8 = "float32", "float16", "int8"


def _text(help: str, panel: str) -> Any:
    return typer.Option(help=help, rich_help_panel=panel)


def plan(
    rows: Annotated[str, _text("Training rows, such as 10M.", DATA)],
    tokens_per_row: Annotated[float, typer.Option(min=1, help="Tokens of a row.", rich_help_panel=DATA)],
    model_size: Annotated[str | None, _text("Parameters of the model, such as 70B.", MODELS)] = None,
    model: Annotated[str | None, _text("Folder of a model, whose real layers are read.", MODELS)] = None,
    checkpoints: Annotated[int, typer.Option(min=1, help="Fine-tuned checkpoints.", rich_help_panel=MODELS)] = 3,
    base: Annotated[
        bool, typer.Option("--base/--no-base", help="The base model is indexed too.", rich_help_panel=MODELS)
    ] = True,
    targets_per_row: Annotated[
        float | None, _text("Tokens of a row that the loss counts. [default: half of them]", DATA)
    ] = None,
    parameters: Parameters = None,
    gpus: Annotated[
        str | None, _text("Devices, such as 64xH100. [default: threads of the measured CPU]", COMPUTING)
    ] = None,
    gpu_flops: Annotated[
        str | None, _text("Peak bfloat16 FLOP/s of a GPU that is not in the table, such as 989T.", COMPUTING)
    ] = None,
    gpu_memory: Annotated[str | None, _text("Memory of such a GPU, such as 80G.", COMPUTING)] = None,
    utilisation: Annotated[
        float, typer.Option(min=0.001, max=1, help="Share of a GPU's peak that is reached.", rich_help_panel=COMPUTING)
    ] = 0.35,
    threads: Annotated[
        int, typer.Option(min=1, help="CPU threads, where no GPUs are given.", rich_help_panel=COMPUTING)
    ] = 1,
    read_gbs: Annotated[
        float | None, _text("GB/s that all readers together read the index with. [default: from memory]", COMPUTING)
    ] = None,
    dtype: Annotated[
        Dtype | None,
        _text("Precision of the models. [default: bfloat16 on GPUs, else float32]", COMPUTING),
    ] = None,
    rank: Annotated[int, typer.Option(min=1, help="Numbers kept of each layer: rank x rank.")] = 16,
    features: Annotated[Stored, _text("Type of the stored numbers.", COMPUTING)] = Stored.float16,
    as_json: AsJson = False,
) -> None:
    """Say what an index would cost before it is built: passes, hours, size, memory, time of a query.

    The model of the cost is documented in docs/cluster.md. Constants of CPUs are measured, those of GPUs assumed.
    """
    from headwater.errors import UsageError
    from headwater.forecast.cost import Cluster, Work, forecast
    from headwater.forecast.devices import gpus as read_gpus
    from headwater.forecast.devices import number
    from headwater.forecast.shapes import ModelShape

    if (model is None) == (model_size is None):
        raise UsageError(
            "both --model and --model-size" if model else "neither --model nor --model-size",
            expected="one of them",
            fix="give --model-size 70B, or --model FOLDER",
        )
    for name, value in (("--gpu-flops", gpu_flops), ("--gpu-memory", gpu_memory)):
        if value is not None and gpus is None:
            raise UsageError(f"{name} without --gpus", expected="both", fix="add --gpus, such as 8xmine")
    count, device = read_gpus(gpus, flops=gpu_flops, memory=gpu_memory) if gpus else (threads, None)
    work = Work(
        rows=round(number(rows, "--rows")),
        tokens=tokens_per_row,
        targets=targets_per_row if targets_per_row is not None else tokens_per_row / 2,
        checkpoints=checkpoints,
        base=base,
        rank=rank,
        features=features.value,
        dtype=dtype.value if dtype else "bfloat16" if device else "float32",
    )
    if model is not None:
        shape = ModelShape.of_folder(model, tuple(parameters or ()))
    elif parameters:
        raise UsageError("--parameters without --model", expected="both", fix="give --model FOLDER")
    else:
        shape = ModelShape.of_size(number(model_size or "", "--model-size"))
    read = None if read_gbs is None else number(f"{read_gbs:f}", "--read-gbs") * 1e9
    cluster = Cluster(count=count, device=device, utilisation=utilisation, read=read)
    found = forecast(shape, work, cluster)
    said = assumptions(cluster, work)
    if as_json:
        record = {key: value for key, value in vars(shape).items() if key != "layers"}
        shown = {"model": record | {"traced_layers": len(shape.layers), "traced_parameters": shape.traced}}
        shown |= {"work": asdict(work), "cluster": asdict(cluster), "forecast": asdict(found)}
        typer.echo(json.dumps(shown | {"assumptions": said}, indent=1))
        return
    for name, value in lines(shape, work, cluster, found):
        typer.echo(f"{name:<18}{value}")
    typer.echo("")
    for sentence in said:
        typer.echo(sentence)


def lines(shape: ModelShape, work: Work, cluster: Cluster, found: Forecast) -> list[tuple[str, str]]:
    """Name and value of each line of the answer."""
    device = cluster.device.name if cluster.device else "CPU thread"
    hours = "GPU-hours" if cluster.device else "thread-hours"
    models = f"{work.checkpoints} checkpoint{'s' * (work.checkpoints > 1)}" + (" and the base" if work.base else "")
    out = [
        (
            "model",
            f"{shape.name}: {shape.parameters / 1e9:,.3g}B parameters, {len(shape.layers)} layers traced with "
            f"{shape.traced / 1e9:,.3g}B",
        ),
        ("passes", f"{found.passes} over {work.rows:,} rows of {work.tokens:g} tokens ({models})"),
        ("computing", f"{found.flops:.3g} FLOP"),
        (hours, f"{amount(found.device_hours)} ({work.dtype})"),
        ("time", f"{duration(found.wall_hours * 3600)} with {cluster.count} x {device}"),
        ("of that, one host", f"{duration(found.host_hours * 3600)} reading rows and making tokens"),
        ("index", f"{size(found.store_bytes)}: {found.row_numbers:,} numbers a row and checkpoint as {work.features}"),
        ("chunk", f"{found.chunk_rows:,} rows, what a kill may cost"),
        (
            "a query",
            f"{duration(found.query_seconds)}, of that {duration(found.scan_seconds)} reading the index",
        ),
        (
            "memory",
            f"{size(found.device_bytes)} a device with batches of {found.batch_tokens:,} tokens; "
            f"{size(found.host_bytes)} for rows where the build is started",
        ),
    ]
    if cluster.device is not None:
        how = "one GPU" if found.per_model == 1 else f"{found.per_model} GPUs"
        if found.per_model > 1:
            how += ", one after the other (--device-map auto)"
        out.insert(5, ("one model on", how))
    return out


def assumptions(cluster: Cluster, work: Work) -> list[str]:
    """What is measured, and what is not."""
    from headwater.forecast.cost import measured

    machine = measured()["environment"]
    where = f"{machine['processor']}, one thread, torch {machine['torch']}"
    said = []
    if cluster.device is not None:
        peak = cluster.device.bfloat16 if work.dtype == "bfloat16" else cluster.device.float32
        said.append(
            f"Assumed: {peak / 1e12:,.4g} TFLOP/s of a {cluster.device.name} by its data sheet, of which "
            f"{cluster.utilisation:.0%} are reached; devices that are always busy; nothing on GPUs was measured."
        )
        said.append(f"Measured on a CPU ({where}): reading rows, loading models, memory a token.")
    else:
        said.append(f"Measured ({where}): all constants, by benchmarks/plan.py. Another CPU is faster or slower.")
        if cluster.count > 1:
            said.append("Assumed: threads that share the work without loss.")
    if cluster.read is None:
        said.append("Assumed: an index that is read from memory; give --read-gbs for a disk or an object store.")
    return said


def size(amount: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if amount < 999.5 or unit == "TB":
            return f"{amount:,.3g} {unit}" if amount < 999.5 else f"{amount:,.0f} {unit}"
        amount /= 1000
    raise AssertionError


def duration(seconds: float) -> str:
    """Seconds for people."""
    for unit, length in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * length:
            return f"{amount(seconds / length)} {unit}"
    return f"{amount(seconds)} seconds"


def amount(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
