# SPDX-License-Identifier: MIT
"""What every test has: hypothesis without deadlines, for machines that are slow at times."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "vscsi", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("vscsi")
