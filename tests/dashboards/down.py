"""Waits until the dashboards say of a job whose exporter has just ended that polls do not succeed.

`down.py PROMETHEUS JOB`, from the root of the repository.
"""

import json
import sys
import time
from pathlib import Path
from urllib.parse import urlencode
from urllib.request import urlopen

prometheus, job = sys.argv[1:]
waiting = {}
for file in Path("grafana/dashboards").glob("*.json"):
    (panel,) = [panel for panel in json.loads(file.read_text())["panels"] if panel["title"] == "Polls succeed"]
    waiting[file.name] = panel["targets"][0]["expr"].replace("$job", job).replace("$__range", "1m")
count, deadline = len(waiting), time.time() + 20
while waiting:
    for name, expr in list(waiting.items()):
        with urlopen(f"{prometheus}/api/v1/query?{urlencode({'query': expr})}", timeout=5) as answer:
            result = json.load(answer)["data"]["result"]
        if [series["value"][1] for series in result] == ["0"]:
            del waiting[name]
        elif time.time() > deadline:
            raise SystemExit(f"{name}, Polls succeed: {result} while the exporter is down")
    time.sleep(0.5)
print(f"{count} checks of an exporter that is down")
