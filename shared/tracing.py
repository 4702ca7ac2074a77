"""OpenTelemetry traces of the workers: one trace per item over all stages, a span per stage and try, its phases as children.

Off unless the standard variables name a collector (`OTEL_EXPORTER_OTLP_ENDPOINT`); then nothing of it is imported here. The
trace's id follows from the job and the item's index, so that no field needs to cross the queue, samplers by ratio choose whole items,
and an item's trace can be found from its place in the job alone. Each stage's span is a root of its own: none waits for another.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from shared.errors import UsageError, VitrinaError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.trace import Span

    from shared.keys import StageName
    from shared.messages import Item

_SWITCHES = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"


def trace_id(job: str, index: int) -> int:
    """Return the id of an item's trace, 128 bits."""
    return int.from_bytes(hashlib.blake2b(f"{job}/{index}".encode(), digest_size=16).digest()) or 1  # 0 is no id


def from_environment() -> Tracing | None:
    """Start traces where the standard variables ask for them. Raises `UsageError` when the packages are missing."""
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or not any(map(os.environ.get, _SWITCHES)):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 - when on
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415 - when on
    except ImportError:
        raise UsageError("OTEL_EXPORTER_OTLP_ENDPOINT asks for traces: install vitrina[otel], or unset it") from None
    return Tracing(BatchSpanProcessor(OTLPSpanExporter()))


class Tracing:
    """Writes the spans of one process. Called from many threads."""

    def __init__(self, processor: SpanProcessor) -> None:
        """Hand finished spans to `processor`. Sampler and resource follow the standard variables."""
        from opentelemetry import context, trace  # noqa: PLC0415 - when on
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415 - when on
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415 - when on
        from opentelemetry.sdk.trace.id_generator import RandomIdGenerator  # noqa: PLC0415 - when on

        wanted = self._wanted = threading.local()

        class Ids(RandomIdGenerator):
            def generate_trace_id(self) -> int:
                return int(wanted.trace)

        name = os.environ.get("OTEL_SERVICE_NAME", "vitrina")
        self._provider = TracerProvider(resource=Resource.create({"service.name": name}), id_generator=Ids())
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("vitrina")
        self._nowhere = context.Context()
        self._inside, self._error = trace.set_span_in_context, trace.StatusCode.ERROR

    @contextmanager
    def stage(self, stage: StageName, item: Item) -> Iterator[dict[str, float]]:
        """Write a span of one try of an item. The caller fills in the seconds of its phases, in their order."""
        self._wanted.trace = trace_id(item.job, item.index)
        names: dict[str, str | int] = {"vitrina.job": item.job, "vitrina.index": item.index, "vitrina.key": item.key}
        began = time.time_ns()
        span = self._tracer.start_span(stage, self._nowhere, attributes=names, start_time=began, record_exception=False)
        phases: dict[str, float] = {}
        try:
            yield phases
        except BaseException as error:
            span.set_status(self._error, str(error))
            span.set_attribute("error.type", error.reason if isinstance(error, VitrinaError) else type(error).__name__)
            raise
        finally:
            self._children(span, began, phases)
            span.end()

    def close(self) -> None:
        """Send what waits."""
        self._provider.shutdown()

    def _children(self, span: Span, start: int, phases: Mapping[str, float]) -> None:
        for phase, seconds in phases.items():
            end = start + int(1e9 * seconds)
            self._tracer.start_span(phase, self._inside(span, self._nowhere), start_time=start).end(end)
            start = end
