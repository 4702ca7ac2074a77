"""What all tests share."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# A machine that is busy for a moment is no fault of what is tested.
settings.register_profile("busy machines", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy machines")
