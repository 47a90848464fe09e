"""The doctor: probes a policy and an env together, and names the convention that does not fit."""

from vla_gym.doctor.diagnose import diagnose
from vla_gym.doctor.findings import Diagnosis, Finding
from vla_gym.doctor.report import save_diagnosis

__all__ = ["Diagnosis", "Finding", "diagnose", "save_diagnosis"]
