"""Traces: one per item over all stages, whoever ran them, and nothing of it where nobody asked."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
from made_jobs import ROOT, Catalogue, Workers
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from producer.embedded import Broker
from shared.broker import make_app
from shared.connection import connect
from shared.errors import UnreadablePictureError
from shared.keys import STAGES
from shared.messages import Item
from shared.settings import Settings
from shared.tracing import Tracing, trace_id

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ITEM = Item("20261123-142501-3f9a2c", 7, "shoes/1.jpg", "0a1b")


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracing(exporter: InMemorySpanExporter) -> Iterator[Tracing]:
    traces = Tracing(SimpleSpanProcessor(exporter))
    yield traces
    traces.close()


def test_the_stages_of_an_item_share_a_trace(tracing: Tracing, exporter: InMemorySpanExporter) -> None:
    """Its id follows from job and index; phases lie in their stage's span, one after the other."""
    for stage in STAGES:
        with tracing.stage(stage, ITEM) as phases:
            phases.update(fetch=0.25, infer=0.5)
    with tracing.stage(STAGES[0], Item(ITEM.job, 8, "shoes/2.jpg", "0a1b")):
        pass
    spans = exporter.get_finished_spans()
    first = [span for span in spans if span.context.trace_id == trace_id(ITEM.job, 7)]
    assert [span.name for span in first] == [name for stage in STAGES for name in ("fetch", "infer", stage)]
    assert spans[-1].context.trace_id == trace_id(ITEM.job, 8) != trace_id(ITEM.job, 7)
    fetch, infer, stage_span = first[:3]
    assert fetch.parent.span_id == infer.parent.span_id == stage_span.context.span_id
    assert stage_span.parent is None
    assert stage_span.attributes == {"vitrina.job": ITEM.job, "vitrina.index": 7, "vitrina.key": "shoes/1.jpg"}
    assert stage_span.start_time == fetch.start_time
    assert fetch.end_time == infer.start_time
    assert infer.end_time - fetch.start_time == 750_000_000


def test_a_failure_is_told_by_its_reason(tracing: Tracing, exporter: InMemorySpanExporter) -> None:
    """The error goes on to whom it concerns."""
    with pytest.raises(UnreadablePictureError), tracing.stage(STAGES[0], ITEM):
        raise UnreadablePictureError("cut short")
    (span,) = exporter.get_finished_spans()
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "cut short")
    assert span.attributes["error.type"] == "unreadable"


def test_a_sampler_takes_items_whole(exporter: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch) -> None:
    """The standard variables choose a part of the items, and of these every stage, in whatever process."""
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.3")
    for stage in STAGES:
        one_process = Tracing(SimpleSpanProcessor(exporter))
        for index in range(200):
            with one_process.stage(stage, Item(ITEM.job, index, "a.jpg", "0a1b")) as phases:
                phases["infer"] = 0.1
    seen: dict[int, set[str]] = {}
    for span in exporter.get_finished_spans():
        seen.setdefault(span.context.trace_id, set()).add(span.name)
    assert 30 < len(seen) < 90
    assert all(names == {*STAGES, "infer"} for names in seen.values())


class Collector:
    """Takes what OpenTelemetry's exporters send over HTTP."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        spans = self.spans

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                for part in ExportTraceServiceRequest.FromString(body).resource_spans:
                    spans.extend(span for scope in part.scope_spans for span in scope.spans)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def test_workers_send_a_trace_per_item(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three processes and an OTLP collector: every stage of every item arrives, also what was waiting when they stopped."""
    collector = Collector()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
    with Broker(tmp_path / "broker") as broker, connect(Settings(broker=broker.url)) as client:
        settings = Settings(broker=broker.url)
        app, own = make_app(settings), Workers(settings)
        catalogue = Catalogue(tmp_path, settings, app, client)
        catalogue.add("a.jpg", "photo")
        catalogue.add("b.jpg", "bad")
        try:
            for stage in STAGES:
                own.start(stage, stage)
            job = catalogue.submit()
            assert catalogue.follow(job).failed == 1
        finally:
            own.stop()
            app.close()
            collector.close()
    found: dict[int, list[str]] = {}
    for span in collector.spans:
        found.setdefault(int.from_bytes(span.trace_id), []).append(span.name)
    good, bad = (found[trace_id(job.id, index)] for index in (0, 1))
    assert {*STAGES, "fetch", "infer", "save"} < set(good)
    assert bad == ["segmentation"]


def test_a_collector_that_is_away_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Items go their way, and the worker ends when it is asked to."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")  # seconds to try again at the end
    with Broker(tmp_path / "broker") as broker, connect(Settings(broker=broker.url)) as client:
        settings = Settings(broker=broker.url)
        app, own = make_app(settings), Workers(settings)
        catalogue = Catalogue(tmp_path, settings, app, client)
        catalogue.add("a.jpg", "photo")
        try:
            own.start("all", ",".join(STAGES))
            assert catalogue.follow(catalogue.submit()).done == 1
        finally:
            start = time.monotonic()
            own.stop()
            app.close()
    assert time.monotonic() - start < 15
    assert own.processes["all"].returncode == 0


def boot(program: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program]
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_nothing_is_imported_where_nobody_asked() -> None:
    """Also when the standard switch turns it off. Redis's client imports OpenTelemetry's metrics by itself where it finds them."""
    program = "import sys, workers.testing; sys.exit('opentelemetry.exporter' in sys.modules)"
    assert boot(program, {}).returncode == 0
    on = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
    assert boot(program, on | {"OTEL_SDK_DISABLED": "true"}).returncode == 0
    assert boot(program, on).returncode == 1


def test_a_missing_package_is_one_line() -> None:
    """A worker that was told to trace and cannot does not start."""
    program = "import sys; sys.modules['opentelemetry'] = None; import workers.testing"
    done = boot(program, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"})
    assert (done.returncode, done.stderr.count("\n")) == (78, 1)
    assert "install vitrina[otel]" in done.stderr
