"""headwater on the workload, through its engine."""

from __future__ import annotations

from importlib.metadata import version

import numpy as np
import torch
from workload import RANK, Document, Job, Result, run_tool

from headwater.attribution.chunks import ChunkGradients
from headwater.attribution.compute import Compute
from headwater.attribution.models import Place
from headwater.examples import Encoded
from headwater.gradients.batches import Batch, collate
from headwater.gradients.contraction import FORMS, Form, SideGradients, side_gradients
from headwater.gradients.curvature import fitting
from headwater.gradients.curvature.options import PLAIN, Curvature, Source, Step
from headwater.gradients.inner import Contractor, Product
from headwater.gradients.kept import Kept, Passes
from headwater.gradients.layers import select_layers
from headwater.gradients.projection import Projection
from headwater.index.store import CheckpointStore, Shape, Writer
from headwater.progress import Bar

CPU, PRECISION = torch.device("cpu"), torch.float32


def encoded(documents: list[Document]) -> list[Encoded]:
    return [Encoded(np.asarray(d.input_ids, np.int64), np.asarray(d.loss_mask, bool)) for d in documents]


def collect(job: Job) -> Result:
    """Projected gradients of every document, written to an index."""
    rows = encoded(job.documents)
    layers = select_layers(job.model).layers
    projection = Projection.of(layers, RANK)
    sizes = tuple((layer.name, layer.features) for layer in projection.layers)
    shape = Shape(len(rows), len(rows), sizes, "float16")
    gradients = ChunkGradients(Place("made", job.model, layers, PRECISION, projection), rows, batch_tokens=2048)
    with Writer(CheckpointStore.create(job.scratch, "checkpoint", shape)) as writer, gradients.hooks.attached():
        writer.put(0, *gradients(0, len(rows), Bar(None, 0)))
    return Result(
        None, f"rank {RANK} a side, {shape.features} features, float16 in Zarr, its own batches of as many tokens"
    )


def exact(job: Job) -> Result:
    return scores(job, by_token=False)


def per_token(job: Job) -> Result:
    return scores(job, by_token=True)


def scores(job: Job, *, by_token: bool) -> Result:
    """Dot products of the queries' gradients with the documents'."""
    rows, sides = encoded(job.documents), encoded(job.queries)
    hooks = Place("made", job.model, select_layers(job.model).layers, PRECISION).hooks(trim=not by_token)
    lengths = tuple(float(x) for x in np.quantile([row.length for row in rows], [0.1, 0.5, 0.9]))
    forms: tuple[Form, ...] = ("factored", "applied") if by_token else FORMS
    stored = side_gradients(hooks, sides, batch_tokens=2048, lengths=lengths, forms=forms, examples=len(rows))
    product = Product("loss", "dot", "here")
    contractor = Contractor({"here": stored}, {"loss": np.eye(len(sides))}, (product,), by_token=by_token)
    out = np.zeros((len(sides), len(rows)))
    with hooks.attached():
        for batch in job.batches:
            found, _ = contractor(hooks, collate([rows[row] for row in batch], CPU, PRECISION))
            out[:, batch] = (found[product].sum(2) if by_token else found[product]).numpy()
    return Result(out, contractor.contraction.sentence() if not by_token else "split by position")


def ekfac(job: Job) -> Result:
    """EK-FAC of the documents' own gradients (the empirical Fisher, as the others), then the queries' scores."""
    rows, sides = encoded(job.documents), encoded(job.queries)
    place = Place("made", job.model, select_layers(job.model).layers, PRECISION)
    curvature = Curvature(kind="ekfac", damping=0.1, labels="data")
    source = Source.of(PLAIN, curvature)
    kept = Kept({source: Passes(3, whole=True)}, lambda: Compute().row_memory)

    def batch(numbers: list[int]) -> Batch:
        return collate([rows[row] for row in numbers], CPU, PRECISION, numbers=numbers)

    stages: list[fitting.Stage] = []
    stage: fitting.Stage | None = fitting.first_stage(curvature, place.hooks().shapes)
    while stage is not None:
        hooks = place.hooks(trim=False, kept=kept.begin(source))
        with hooks.attached():
            for numbers in job.batches:
                stage.batch(hooks, batch(numbers))
        stages.append(stage)
        stage = fitting.next_stage(curvature, stages)
    spectrum = fitting.spectrum_of(curvature, stages)
    stored = side_gradients(place.hooks(), sides, batch_tokens=2048, lengths=(1.0,), form="materialised")
    step = Step(curvature=curvature, at="here")
    stored = SideGradients.of_matrices(spectrum.apply(step, [layer.matrix() for layer in stored.layers]))
    product = Product("loss", "dot", "here")
    contractor = Contractor({"here": stored}, {"loss": np.eye(len(sides))}, (product,))
    out = np.zeros((len(sides), len(rows)))
    hooks = place.hooks(trim=False, kept=kept.begin(source))
    with hooks.attached():
        for numbers in job.batches:
            out[:, numbers] = contractor(hooks, batch(numbers))[0][product].numpy()
    return Result(out, f"empirical Fisher, damping 0.1 of the mean eigenvalue; {kept.sentence()}")


if __name__ == "__main__":
    run_tool(
        "headwater", version("headwater"), {"collect": collect, "exact8": exact, "pertoken": per_token, "ekfac": ekfac}
    )
