"""Whether attribution can be trusted for a model, and whether the fine-tuning did it at all."""

from __future__ import annotations

from headwater.diagnosis.diagnosing import diagnose
from headwater.diagnosis.diagnosis import Diagnosis
from headwater.diagnosis.probes import read_probes

__all__ = ["Diagnosis", "diagnose", "read_probes"]
