"""The decorators for hook specifications and implementations."""

from __future__ import annotations

import pluggy

PROJECT_NAME = "solar_plugins"

hookspec = pluggy.HookspecMarker(PROJECT_NAME)
hookimpl = pluggy.HookimplMarker(PROJECT_NAME)
