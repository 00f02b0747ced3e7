"""Reads OpenMetrics from standard input as strictly as the reference parser does.

The output is JSON: [id, status] of every instance that zenlayer_instance_status shows at 1.
"""

import json
import sys

from prometheus_client.openmetrics.parser import text_string_to_metric_families

families = list(text_string_to_metric_families(sys.stdin.read()))
[statuses] = [family for family in families if family.name == "zenlayer_instance_status"]
json.dump([[s.labels["instanceId"], s.labels["status"]] for s in statuses.samples if s.value == 1], sys.stdout)
