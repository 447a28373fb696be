"""Reads exports by the protocol's own Python package: spans of all files, series of the last file of metrics."""
import json
import sys

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


def text(value):
    kind = value.WhichOneof("value")
    found = getattr(value, kind)
    if kind == "bool_value":
        return "true" if found else "false"
    return repr(found) if kind == "double_value" else str(found)


def attributes(pairs):
    return {pair.key: text(pair.value) for pair in pairs}


def series(metric):
    kind = metric.WhichOneof("data")
    for point in getattr(metric, kind).data_points:
        if kind == "histogram":
            yield [metric.name, metric.unit, point.count, point.sum]
        else:
            yield [metric.name, metric.unit, 1, float(getattr(point, point.WhichOneof("value")))]


spans, points = [], []
for path in sys.argv[1:]:
    body = open(path, "rb").read()
    if path.endswith("-v1-traces"):
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            for scope in resource.scope_spans:
                assert scope.schema_url == "https://opentelemetry.io/schemas/1.41.0", scope.schema_url
                for span in scope.spans:
                    spans.append([span.name, span.trace_id.hex(), span.span_id.hex(), attributes(span.attributes)])
    else:
        points = []
        for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    points.extend(series(metric))
print(json.dumps({"spans": spans, "points": points}))
