"""What a diagnosis says: one finding per probe, and all of them with the evidence."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Diagnosis", "Finding"]


@dataclass(frozen=True)
class Finding:
    """What one probe found.

    Attributes:
        probe: what was looked at, such as `"picture orientation"`.
        verdict: `"pass"`, `"fail"`, `"unknown"` (the evidence does not decide) or `"not
            applicable"` (the pair has nothing of the kind).
        evidence: the numbers, or why there are none.
        fault: name of what is wrong, where something is.
        remedy: what to change, where something is wrong.
    """

    probe: str
    verdict: str
    evidence: str
    fault: str | None = None
    remedy: str | None = None


@dataclass(frozen=True)
class Diagnosis:
    """All findings about a policy in an env.

    Attributes:
        policy, env_id, reference: names; the reference is None where there was none.
        findings: one for each probe, those of the env first.
        latency_ms: median wall time of `predict` for one env [ms].
        steps: control steps that were looked at.
        seconds: wall time of the diagnosis.
        pictures: name -> uint8 (H, W, 3), what the probes looked at.
    """

    policy: str
    env_id: str
    reference: str | None
    findings: tuple[Finding, ...]
    latency_ms: float
    steps: int
    seconds: float
    pictures: dict[str, Any]

    @property
    def faults(self) -> tuple[str, ...]:
        """Names of the faults found."""
        return tuple(f.fault for f in self.findings if f.fault is not None)

    @property
    def failed(self) -> bool:
        """Whether any probe failed."""
        return any(f.verdict == "fail" for f in self.findings)

    def __getitem__(self, probe: str) -> Finding:
        """Return the finding of a probe."""
        return next(f for f in self.findings if f.probe == probe)

    def to_dict(self) -> dict[str, Any]:
        """Return all but the pictures as plain JSON."""
        return {
            "policy": self.policy,
            "env": self.env_id,
            "reference": self.reference,
            "faults": list(self.faults),
            "findings": [asdict(f) for f in self.findings],
            "latency_ms": self.latency_ms,
            "steps": self.steps,
            "seconds": self.seconds,
        }
